"""Makes message ids of any age, and makes the inbox forget."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg

Conn = psycopg.Connection[Any]


def made(days_ago: float = 0, *, at: datetime | None = None) -> UUID:
    """Returns a UUIDv7 made that many days ago."""
    at = at or datetime.now(UTC) - timedelta(days=days_ago)
    number = int(at.timestamp() * 1000) << 80 | uuid4().int & ((1 << 80) - 1)
    return UUID(int=number & ~(0xF << 76) | 7 << 76)


def forget(conn: Conn, days: float) -> list[tuple[str, bool]]:
    return conn.execute("SELECT child, emptied FROM outbox.inbox_forget(%s::float8)", [days]).fetchall()
