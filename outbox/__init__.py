"""Outbox: long-lived, stateful pipelines on the Postgres that you already run."""

from .approvals import approve, decide, reject
from .consumer import Consumer, consume
from .delivery import Delivery
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
from .handle import Run
from .inbox import Inbox
from .maintenance import Retention
from .outcome import Backoff, Go, Reject, Retry
from .pipeline import Change, Pipeline
from .schedule import Tick
from .sharding import shard
from .signals import Signalled, signal
from .submit import Submitted
from .waits import WaitForApproval, WaitForChildren, WaitForSignal
from .worker import Worker

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
