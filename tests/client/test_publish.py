"""An application publishes messages by itself: with its own transaction, or not at all."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, value
from outbox import InvalidInput, publish

Conn = psycopg.Connection[Any]
MESSAGES = "SELECT message_id, topic, key, payload, headers, workflow_id FROM outbox.messages ORDER BY id"


def test_a_message_is_written_with_the_transaction_and_has_an_id(conn: Conn) -> None:
    with conn.transaction(force_rollback=True):
        publish(conn, "never", {})
    first = publish(conn, "orders.paid", {"sum": 7}, key="a", headers={"trace": "x"})
    second = publish(conn, "orders.sent", Post())
    assert conn.execute(MESSAGES).fetchall() == [
        (first, "orders.paid", "a", {"sum": 7}, {"trace": "x"}, None),
        (second, "orders.sent", None, {"content": "hello", "enrichment": None}, None, None),
    ]
    assert first.version == second.version == 7


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("topic", {"topic": ""}), ("topic", {"topic": "x" * 256}), ("key", {"key": ""}), ("key", {"key": "\0"}),
        ("payload", {"payload": {1: 2}}), ("payload", {"payload": float("nan")}), ("headers", {"headers": 7}),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused_before_any_sql(conn: Conn, field: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=field):
        publish(conn, **{"topic": "t", "payload": None, **wrong})
    assert value(conn, "SELECT count(*) FROM outbox.messages") == 0
