"""Publishes messages, in the caller's own transaction, on a sync or an async connection.

A plain `INSERT INTO outbox.messages (topic, key, payload)` does the same.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, overload
from uuid import UUID

from .. import documents, texts
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..errors import InvalidInput
from .execute import Steps, execute

SQL = statements.load("publish")

MAX_TOPIC = 255
"""Most characters of a topic: an AMQP routing key has up to 255 bytes."""

MAX_KEY = 1_000
"""Most characters of a key: it is indexed with parked messages, and an index row holds up to 2,700 bytes."""


@overload
def publish(
    conn: AsyncConn, topic: str, payload: Any, *, key: str | None = None, headers: Mapping[str, str] | None = None
) -> Coroutine[Any, Any, UUID]: ...
@overload
def publish(
    conn: SyncConn, topic: str, payload: Any, *, key: str | None = None, headers: Mapping[str, str] | None = None
) -> UUID: ...
def publish(
    conn: Any, topic: str, payload: Any, *, key: str | None = None, headers: Mapping[str, str] | None = None
) -> Any:
    """Writes a message that is published if, and only if, the caller's transaction commits. Returns the message's id.

    Await it on an async connection. `payload` is any plain JSON value or a pydantic model. `key` orders messages: those
    of one key are published in the order in which their transactions took it. Handlers use `run.publish` instead.

    Raises InvalidInput, before any SQL, if the message can't be stored.
    """
    return execute(conn, _publish(*checked(topic, payload, key, headers)))


def checked(
    topic: str, payload: Any, key: str | None, headers: Mapping[str, str] | None
) -> tuple[str, str | None, str, str | None]:
    """Returns a message as texts: topic, key, payload, headers. Raises InvalidInput if it can't be stored."""
    if not isinstance(headers, Mapping | None):
        raise InvalidInput("headers", f"must be a mapping, not {type(headers).__name__}")
    texts.check_optional(key, "key", MAX_KEY)
    return (
        texts.check_text(topic, "topic", MAX_TOPIC),
        key,
        documents.dump_any(payload, "payload"),
        None if headers is None else documents.dump_any(dict(headers), "headers"),
    )


def _publish(topic: str, key: str | None, payload: str, headers: str | None) -> Steps[UUID]:
    ((id_,),) = yield SQL["message_write"], {"topic": topic, "key": key, "payload": payload, "headers": headers}
    return UUID(id_)
