"""Makes another attempt to connect beside one that takes long: the name of a host may lead elsewhere by now.

What hangs as one connects to it, be it a host, a proxy or a pooler, can't be told from what is slow. The slow one is
given all its time, and what has taken the hung one's place is found without waiting for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg

from ..process.service import cancel

ANOTHER_AFTER = 3.0
"""Seconds without a session after which another attempt begins: what is well takes far less, and a server that is slow
for want of resources gets no more than a few at once (dsn.py says how long each may take).
"""

Connection = psycopg.AsyncConnection[Any]


async def connected(attempt: Callable[[], Coroutine[Any, Any, Connection]]) -> Connection:
    """Returns the connection of the first attempt that succeeds. Raises the error of the oldest one when that fails."""
    oldest = asyncio.create_task(attempt())
    attempts = [oldest]
    kept: asyncio.Task[Connection] | None = None
    try:
        while True:
            done, _ = await asyncio.wait(attempts, timeout=ANOTHER_AFTER, return_when=asyncio.FIRST_COMPLETED)
            kept = next((each for each in attempts if each in done and not _failed(each)), None)
            if kept is not None or oldest in done:
                return (kept or oldest).result()
            attempts = [each for each in attempts if each not in done]
            if not done:
                attempts.append(asyncio.create_task(attempt()))
    finally:
        others = [each for each in attempts if each is not kept]
        await cancel(*others)
        for each in others:
            if each.done() and not _failed(each):
                await each.result().close()


def _failed(attempt: asyncio.Task[Connection]) -> bool:
    return attempt.cancelled() or attempt.exception() is not None
