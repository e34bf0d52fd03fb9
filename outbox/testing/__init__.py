"""Tests of applications: one handler without a database, and everything that is due. See docs/testing.md."""

from .attempts import Attempt, Published, Spawned, attempt, attempt_async, attempt_batch, attempt_batch_async
from .calls import attempt_delivery, attempt_delivery_async, attempt_tick, attempt_tick_async
from .draining import drain, drain_async

__all__ = [
    "Attempt",
    "Published",
    "Spawned",
    "attempt",
    "attempt_async",
    "attempt_batch",
    "attempt_batch_async",
    "attempt_delivery",
    "attempt_delivery_async",
    "attempt_tick",
    "attempt_tick_async",
    "drain",
    "drain_async",
]
