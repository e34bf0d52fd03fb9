"""Takes turns for migrate, deploy and retry, and logs who holds a turn that doesn't come."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from ..texts import printable
from . import statements

SQL = statements.load("turn")
log = logging.getLogger("outbox.database")

PATIENCE = 5.0
"""Seconds until the holder of the turn is logged: a deploy or a migration seldom takes longer."""


def take(conn: psycopg.Connection[Any], name: str, *, shared: bool = False, give_up: bool = False) -> None:
    """Waits for a turn and holds it until the end of the transaction in which the connection must be.

    After five seconds it logs which sessions hold the turn, and keeps waiting. With `give_up` it raises
    LockNotAvailable then.
    """
    wanted = {"name": f"outbox.{name}", "shared": shared}
    try:
        with patience(conn, PATIENCE):
            conn.execute(SQL["turn_take"], wanted)
    except psycopg.errors.LockNotAvailable:
        log.warning(
            "waiting for the lock outbox.%s, which %s holds; pg_terminate_backend() ends a session",
            name,
            _who(conn, wanted),
        )
        if give_up:
            raise
        conn.execute(SQL["turn_take"], wanted)


@contextmanager
def patience(conn: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """Limits how long statements wait for locks. Afterwards the old limit returns; an error rolls the block back."""
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        ((before,),) = cursor.execute(SQL["patience"]).fetchall()
        cursor.execute(SQL["patience_set"], {"wait": f"{seconds * 1000:.0f}ms"})
        yield
        cursor.execute(SQL["patience_set"], {"wait": before})


def _who(conn: psycopg.Connection[Any], wanted: dict[str, Any]) -> str:
    with conn.cursor(row_factory=tuple_row) as cursor:
        found = cursor.execute(SQL["turn_holders"], wanted).fetchall()
    told = [f"session {pid} ({printable(', '.join(filter(None, about)))})" for pid, *about in found]
    return " and ".join(told) or "a session that has just ended"
