"""Gives up waiting for a database that does not answer, without asking it for anything more."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg


@asynccontextmanager
async def answers_within(conn: psycopg.AsyncConnection[Any], seconds: float) -> AsyncIterator[None]:
    """Hangs up, and raises TimeoutError, if what is asked in the context is not answered in time.

    What the database does then is unknown: it may still commit. No cancel is sent, as psycopg does where a task is
    cancelled: it would wait for the same server, and a COMMIT that waits for its standby would end as if it had it.
    """
    late = False

    def hang_up() -> None:
        nonlocal late
        late = True
        if not conn.closed:
            with socket.socket(fileno=os.dup(conn.pgconn.socket)) as line:
                line.shutdown(socket.SHUT_RDWR)  # what waits for the answer sees its end

    timer = asyncio.get_running_loop().call_later(seconds, hang_up)
    try:
        yield
    except psycopg.OperationalError as error:
        if late:
            raise TimeoutError(f"no answer within {seconds:g} s") from error
        raise
    finally:
        timer.cancel()
