"""Outbox: long-lived, stateful pipelines on the Postgres that you already run."""

from .client.approvals import approve, decide, reject
from .client.dead import DeadJob, dead, retry, retry_all
from .client.delegations import delegate, end_delegation
from .client.erase import Erased
from .client.inbox import Inbox
from .client.links import ApprovalLink, approval_link, open_link, use_link
from .client.lists import Page, StateChange, Workflow
from .client.overview import StatusCount, status
from .client.publish import publish
from .client.questions import Approval, approvals
from .client.signals import Signalled, signal
from .client.stages import pause, resume
from .client.submit import Submitted
from .client.why import Why, why
from .database.refusals import error_of
from .definition.blob import Blob
from .definition.effect import Ask, Done, NotDone
from .definition.failed_attempts import FailedAttempt
from .definition.outcome import Backoff, Go, Reject, Retry
from .definition.pipeline import Pipeline
from .definition.reactions import Change
from .definition.run import Answer, Child, Run, Spawned, SyncRun
from .definition.schedule import SyncTick, Tick
from .definition.waits.approval import WaitForApproval
from .definition.waits.children import WaitForChildren
from .definition.waits.question import Question
from .definition.waits.signal import WaitForSignal
from .engine.retention import Retention
from .engine.worker import Worker
from .errors import (
    AgentChanged,
    AppendOnly,
    DataChanged,
    DataRefused,
    DefinitionError,
    EditRefused,
    EffectUnknown,
    EmbeddedUnavailable,
    HandlerError,
    IdentityFixed,
    IllegalChange,
    InvalidInput,
    LeaseLost,
    LinkRefused,
    NeverReached,
    NoSuchOption,
    NotAnId,
    NotCancellable,
    NotDeployed,
    NotFound,
    NothingAsked,
    NoWorkflow,
    OlderVersion,
    OutboxError,
    OwnQuestion,
    PipelineInUse,
    QuorumNeeded,
    Refused,
    SchemaError,
    SettingsError,
    SeveralAsked,
    Stranded,
    TooLate,
    TooNew,
    TooOld,
    UnknownPipeline,
    UnknownStage,
    UnknownStatus,
    VoteRefused,
    WaitTimeout,
    WorkerBroken,
    WrongCursor,
)
from .messages.consumer import Consumer, consume
from .messages.delivery import Delivery, SyncDelivery
from .messages.sharding import shard
from .operations.prepare import deploy, migrate
from .process.embedding import Health

__all__ = [
    "AgentChanged",
    "Answer",
    "AppendOnly",
    "Approval",
    "ApprovalLink",
    "Ask",
    "Backoff",
    "Blob",
    "Change",
    "Child",
    "Consumer",
    "DataChanged",
    "DataRefused",
    "DeadJob",
    "DefinitionError",
    "Delivery",
    "Done",
    "EditRefused",
    "EffectUnknown",
    "EmbeddedUnavailable",
    "Erased",
    "FailedAttempt",
    "Go",
    "HandlerError",
    "Health",
    "IdentityFixed",
    "IllegalChange",
    "Inbox",
    "InvalidInput",
    "LeaseLost",
    "LinkRefused",
    "NeverReached",
    "NoSuchOption",
    "NoWorkflow",
    "NotAnId",
    "NotCancellable",
    "NotDeployed",
    "NotDone",
    "NotFound",
    "NothingAsked",
    "OlderVersion",
    "OutboxError",
    "OwnQuestion",
    "Page",
    "Pipeline",
    "PipelineInUse",
    "Question",
    "QuorumNeeded",
    "Refused",
    "Reject",
    "Retention",
    "Retry",
    "Run",
    "SchemaError",
    "SettingsError",
    "SeveralAsked",
    "Signalled",
    "Spawned",
    "StateChange",
    "StatusCount",
    "Stranded",
    "Submitted",
    "SyncDelivery",
    "SyncRun",
    "SyncTick",
    "Tick",
    "TooLate",
    "TooNew",
    "TooOld",
    "UnknownPipeline",
    "UnknownStage",
    "UnknownStatus",
    "VoteRefused",
    "WaitForApproval",
    "WaitForChildren",
    "WaitForSignal",
    "WaitTimeout",
    "Why",
    "Worker",
    "WorkerBroken",
    "Workflow",
    "WrongCursor",
    "approval_link",
    "approvals",
    "approve",
    "consume",
    "dead",
    "decide",
    "delegate",
    "deploy",
    "end_delegation",
    "error_of",
    "migrate",
    "open_link",
    "pause",
    "publish",
    "reject",
    "resume",
    "retry",
    "retry_all",
    "shard",
    "signal",
    "status",
    "use_link",
    "why",
]
