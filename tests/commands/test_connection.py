"""A command's connection to the database."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from outbox import settings
from outbox.commands.connection import database


def interrupt(conn: psycopg.Connection[Any]) -> None:
    """Raises what Ctrl-C does, when a query was sent and its answer was not read."""
    conn.pgconn.send_query(b"SELECT pg_sleep(600)")
    raise KeyboardInterrupt


def test_ctrl_c_in_the_middle_of_a_query_ends_a_command_without_a_warning(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OUTBOX_DSN", dsn)
    with pytest.raises(KeyboardInterrupt), database(settings.load()) as conn:
        interrupt(conn)
    assert conn.closed
    assert not caplog.records
