"""Closes Django's connections around handlers, as Django does around requests.

Without this, a thread keeps a connection that the server has ended, and each job that the thread takes fails.
"""

from __future__ import annotations

import asyncio
import threading
import time
from types import TracebackType
from typing import Any

from asgiref.sync import SyncToAsync, sync_to_async
from django.conf import settings
from django.db import connections, reset_queries

LOOK_EVERY = 1.0
"""Seconds between two looks before handlers: what has happened meanwhile is how a connection ages."""


PATIENCE = 1.0
"""Seconds that a worker's end waits for the thread of async handlers' ORM: a handler may hang there."""


class _Thread(threading.local):
    """What is known of a thread: whether Django has connected in it, and when its connections were looked at."""

    connected = False
    looked = float("-inf")


_here = _Thread()
_async_looked = float("-inf")  # in a thread of asgiref's, which stays


def note_connected(**_: Any) -> None:
    """Notes that this thread has a connection: it receives Django's signal `connection_created`."""
    _here.connected = True


def close_stale() -> None:
    """Closes the connections of this thread that are lost, or older than CONN_MAX_AGE. Those in `atomic` stay open."""
    if not _here.connected:
        return  # the look itself takes some 30 µs
    _here.looked = time.monotonic()
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def close_idle() -> None:
    """Closes the connections of this thread, except those in `atomic`. A database that has any can't be dropped."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


async def end_loop() -> None:
    """Closes the connections of the thread in which the ORM of async handlers has worked."""
    if _async_looked > 0:
        closing = SyncToAsync.single_thread_executor.submit(close_idle)
        await asyncio.wait([asyncio.wrap_future(closing)], timeout=PATIENCE)


class Healing:
    """Surrounds each attempt, of plain and of async handlers.

    A plain handler's thread has its connections looked at after each attempt, and before it if it has been idle. The
    ORM of all async handlers works in one thread. Its connections are looked at after an attempt that has failed, and
    at times, because each look takes a hop to that thread and back.
    """

    def __init__(self, _: object) -> None:
        pass

    def __enter__(self) -> None:
        if settings.DEBUG:
            reset_queries()
        if time.monotonic() - _here.looked > LOOK_EVERY:
            close_stale()

    def __exit__(self, *_: object) -> None:
        close_stale()

    async def __aenter__(self) -> None:
        global _async_looked
        if time.monotonic() - _async_looked > LOOK_EVERY:
            _async_looked = time.monotonic()
            await sync_to_async(self.__enter__)()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            await sync_to_async(close_stale)()
