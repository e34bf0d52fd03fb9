"""Closes Django's connections around handlers, as Django does around requests.

Without this, a thread keeps a connection that the server has ended, and each job that the thread takes fails.
"""

from __future__ import annotations

import time
from types import TracebackType

from asgiref.sync import sync_to_async
from django.db import connections, reset_queries

LOOK_EVERY = 1.0
"""Seconds between two looks at the connections of async handlers. A look takes a hop to another thread and back."""

_looked = float("-inf")


def close_stale() -> None:
    """Closes the connections of this thread that are lost, or older than CONN_MAX_AGE. Those in `atomic` stay open."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


class Healing:
    """Surrounds each attempt, of plain and of async handlers.

    A plain handler's thread has its connections looked at before and after each attempt. The ORM of all async handlers
    works in one thread, whose connections are looked at after an attempt that has failed, and at times.
    """

    def __init__(self, _: object) -> None:
        pass

    def __enter__(self) -> None:
        reset_queries()
        close_stale()

    def __exit__(self, *_: object) -> None:
        close_stale()

    async def __aenter__(self) -> None:
        global _looked
        if time.monotonic() - _looked > LOOK_EVERY:
            _looked = time.monotonic()
            await sync_to_async(self.__enter__)()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            await sync_to_async(close_stale)()
