"""Tests of applications: one handler without a database, and everything that is due. See docs/testing.md."""

from .attempts import Attempt, Published, Spawned, attempt, attempt_async, attempt_batch, attempt_batch_async
from .calls import attempt_delivery, attempt_delivery_async, attempt_tick, attempt_tick_async
from .cleaning import clean
from .crashing import crash_everywhere
from .draining import drain, drain_async
from .found import assert_published, assert_submitted, history, published, submitted
from .moving import advance
from .working import Drained

__all__ = [
    "Attempt",
    "Drained",
    "Published",
    "Spawned",
    "advance",
    "assert_published",
    "assert_submitted",
    "attempt",
    "attempt_async",
    "attempt_batch",
    "attempt_batch_async",
    "attempt_delivery",
    "attempt_delivery_async",
    "attempt_tick",
    "attempt_tick_async",
    "clean",
    "crash_everywhere",
    "drain",
    "drain_async",
    "history",
    "published",
    "submitted",
]
