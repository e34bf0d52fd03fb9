"""Outbox: long-lived, stateful pipelines on the Postgres that you already run."""

from .client.approvals import approve, decide, reject
from .client.inbox import Inbox
from .client.lists import Page, StateChange, Workflow
from .client.signals import Signalled, signal
from .client.submit import Submitted
from .client.why import Why, why
from .database.refusals import error_of
from .definition.outcome import Backoff, Go, Reject, Retry
from .definition.pipeline import Pipeline
from .definition.reactions import Change
from .definition.schedule import Tick
from .definition.waits.approval import WaitForApproval
from .definition.waits.children import WaitForChildren
from .definition.waits.signal import WaitForSignal
from .engine.retention import Retention
from .engine.run import Run
from .engine.worker import Worker
from .errors import (
    AppendOnly,
    DataChanged,
    DefinitionError,
    EmbeddedUnavailable,
    HandlerError,
    IdentityFixed,
    IllegalChange,
    InvalidInput,
    LeaseLost,
    NoSuchOption,
    NotAnId,
    NotDeployed,
    NotFound,
    NothingAsked,
    NoWorkflow,
    OutboxError,
    Refused,
    SchemaError,
    SettingsError,
    Stranded,
    TooLate,
    TooNew,
    TooOld,
    UnknownPipeline,
    UnknownStatus,
    WorkerBroken,
)
from .messages.consumer import Consumer, consume
from .messages.delivery import Delivery
from .messages.sharding import shard
from .operations.prepare import deploy, migrate

__all__ = [
    "AppendOnly",
    "Backoff",
    "Change",
    "Consumer",
    "DataChanged",
    "DefinitionError",
    "Delivery",
    "EmbeddedUnavailable",
    "Go",
    "HandlerError",
    "IdentityFixed",
    "IllegalChange",
    "Inbox",
    "InvalidInput",
    "LeaseLost",
    "NoSuchOption",
    "NoWorkflow",
    "NotAnId",
    "NotDeployed",
    "NotFound",
    "NothingAsked",
    "OutboxError",
    "Page",
    "Pipeline",
    "Refused",
    "Reject",
    "Retention",
    "Retry",
    "Run",
    "SchemaError",
    "SettingsError",
    "Signalled",
    "StateChange",
    "Stranded",
    "Submitted",
    "Tick",
    "TooLate",
    "TooNew",
    "TooOld",
    "UnknownPipeline",
    "UnknownStatus",
    "WaitForApproval",
    "WaitForChildren",
    "WaitForSignal",
    "Why",
    "Worker",
    "WorkerBroken",
    "Workflow",
    "approve",
    "consume",
    "decide",
    "deploy",
    "error_of",
    "migrate",
    "reject",
    "shard",
    "signal",
    "why",
]
