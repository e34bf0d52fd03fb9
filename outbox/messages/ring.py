"""Empties the tables of the message log that every relay has passed, and turns the ring before a table is full."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from ..database import statements
from ..database.link import first_line, temporary

SQL = statements.load("ring")

LOCK_TIMEOUT = "SET LOCAL lock_timeout = '100ms'"
"""Milliseconds to wait for a table: writers queue behind the lock in the meantime, and another rotation follows."""


IN_USE = "a transaction that writes messages is open"


async def rotate(conn: psycopg.AsyncConnection[Any], days: float | None = None) -> dict[str, str]:
    """Empties the child tables that every relay has passed; without a relay, those older than `days`.

    Returns those that could not be emptied, and why: they could not be locked at once, or a trigger or a key of others
    refuses it.
    """
    stuck: dict[str, str] = {}
    for child, current, _ in await _ask(conn, "ring"):
        if current or not all((await _ask(conn, "ring_child", child, days))[0]):
            continue
        try:
            async with conn.transaction():
                await conn.execute(LOCK_TIMEOUT)
                await _ask(conn, "ring_lock", child)
                # Asked again, because a writer may have written messages while the lock was waited for.
                if all((await _ask(conn, "ring_child", child, days))[0]):
                    await _ask(conn, "ring_truncate", child)
        except psycopg.errors.LockNotAvailable:
            stuck[child] = IN_USE
        except psycopg.Error as error:
            if temporary(error):
                raise
            stuck[child] = first_line(error)
    async with conn.transaction():
        await _ask(conn, "ring_turn_lock")
        children = await _ask(conn, "ring")
        current = next((number for number, child in enumerate(children) if child[1]), 0)
        following = children[(current + 1) % len(children)][0]
        if not (await _ask(conn, "ring_child", following, days))[0][0]:
            await _ask(conn, "ring_turn", children[current][0], days)
    return stuck


async def _ask(
    conn: psycopg.AsyncConnection[Any], name: str, child: str = "", days: float | None = None
) -> list[tuple[Any, ...]]:
    statement = sql.SQL(SQL[name].decode()).format(child=sql.Identifier("outbox", child))
    cursor = await conn.execute(statement, {"days": days} if b"%(days)" in SQL[name] else None)
    return await cursor.fetchall() if cursor.description else []
