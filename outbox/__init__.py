"""Outbox: long-lived, stateful pipelines on the Postgres that you already run."""

from .client.approvals import approve, decide, reject
from .client.inbox import Inbox
from .client.signals import Signalled, signal
from .client.submit import Submitted
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
    DefinitionError,
    EmbeddedUnavailable,
    HandlerError,
    InvalidInput,
    LeaseLost,
    NotDeployed,
    NotFound,
    OutboxError,
    SchemaError,
    SettingsError,
    Stranded,
    TooNew,
    TooOld,
)
from .messages.consumer import Consumer, consume
from .messages.delivery import Delivery
from .messages.sharding import shard

__all__ = [
    "Backoff",
    "Change",
    "Consumer",
    "DefinitionError",
    "Delivery",
    "EmbeddedUnavailable",
    "Go",
    "HandlerError",
    "Inbox",
    "InvalidInput",
    "LeaseLost",
    "NotDeployed",
    "NotFound",
    "OutboxError",
    "Pipeline",
    "Reject",
    "Retention",
    "Retry",
    "Run",
    "SchemaError",
    "SettingsError",
    "Signalled",
    "Stranded",
    "Submitted",
    "Tick",
    "TooNew",
    "TooOld",
    "WaitForApproval",
    "WaitForChildren",
    "WaitForSignal",
    "Worker",
    "approve",
    "consume",
    "decide",
    "reject",
    "shard",
    "signal",
]
