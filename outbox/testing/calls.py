"""Calls the function of a schedule, or the handler of a consumer, once and without a database or a broker."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from .. import documents, texts
from ..checks import check_whole
from ..client.publish import MAX_KEY, MAX_TOPIC
from ..definition import hooks
from ..definition.pipeline import Pipeline
from ..definition.schedule import Schedule, SyncTick, Tick
from ..errors import HandlerError, InvalidInput
from ..messages.delivery import Arrival, Delivery
from .attempts import called_as_in_a_worker
from .connections import Connection, psycopg_of, require_color, savepoint, savepoint_async
from .running import no_loop


class NoConnection:
    """Stands for the connection that a test has not passed."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> Any:
        raise HandlerError(f"{self._what} uses its connection: pass connection=")


def attempt_tick(
    pipeline: Pipeline[Any], schedule: str, *, at: datetime | None = None, connection: Any = None,
    resources: Any = None,
) -> Any:  # fmt: skip
    """Calls the function of a schedule (`Pipeline.every`) once, and returns what it returns.

    `at` is the time for which the tick was scheduled (default: the next one). What the function raises is raised. It
    gets `connection`, a psycopg connection or Django's, as `tick.connection`; what it writes stays in the caller's
    transaction, and is rolled back if it raises. Raises InvalidInput for a schedule that isn't there, and for a
    connection of the other kind than the function.
    """
    return _run(*_tick(pipeline, schedule, at, connection, resources), "attempt_tick_async")


async def attempt_tick_async(
    pipeline: Pipeline[Any], schedule: str, *, at: datetime | None = None, connection: Any = None,
    resources: Any = None,
) -> Any:  # fmt: skip
    """Does what `attempt_tick` does, in a running event loop. A plain function is called in a thread."""
    return await _run_async(*_tick(pipeline, schedule, at, connection, resources))


def attempt_delivery(
    handler: Callable[[Delivery], Any], payload: Any, *, topic: str = "topic", key: str | None = None,
    headers: Mapping[str, Any] | None = None, message_id: UUID | str | None = None, attempt: int = 1,
    connection: Any = None, resources: Any = None,
) -> Any:  # fmt: skip
    """Calls the handler of a consumer (`consume`) once with a message, and returns what it returns.

    The message is read as one that has come from a queue: `payload` is a JSON value or a pydantic model. What the
    handler raises is raised. `connection` is as in `attempt_tick`. The inbox is not asked.
    """
    delivery = _delivery(payload, topic, key, headers, message_id, attempt)
    if resources is not None:
        hooks.give(delivery, resources)
    return _run(*_delivered(handler, delivery, connection), "attempt_delivery_async")


async def attempt_delivery_async(
    handler: Callable[[Delivery], Any], payload: Any, *, topic: str = "topic", key: str | None = None,
    headers: Mapping[str, Any] | None = None, message_id: UUID | str | None = None, attempt: int = 1,
    connection: Any = None, resources: Any = None,
) -> Any:  # fmt: skip
    """Does what `attempt_delivery` does, in a running event loop. A plain handler is called in a thread."""
    delivery = _delivery(payload, topic, key, headers, message_id, attempt)
    if resources is not None:
        hooks.give(delivery, resources)
    return await _run_async(*_delivered(handler, delivery, connection))


def _tick(
    pipeline: Pipeline[Any], name: str, at: datetime | None, connection: Any, resources: Any
) -> tuple[Callable[[], Any], Connection | None]:
    if name not in pipeline.schedules:
        known = ", ".join(pipeline.schedules) or "none"
        raise InvalidInput("schedule", f"pipeline {pipeline.name} has no {texts.shown(name)}; it has: {known}")
    schedule: Schedule = pipeline.schedules[name]
    if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
        raise InvalidInput("at", f"must be a datetime with a time zone, not {texts.shown(at)}")
    conn = _connection(connection, f"schedule {schedule.label}", is_async=_is_async(schedule.function))
    moment = at or schedule.after(datetime.now(UTC))
    lent: Any = conn if conn is not None else NoConnection(f"schedule {schedule.label}")
    tick = (Tick if _is_async(schedule.function) else SyncTick)(schedule.label, moment, lent)
    if resources is not None:
        hooks.give(tick, resources)
    is_async, name = _is_async(schedule.function), f"the function of {schedule.label}"
    return partial(called_as_in_a_worker(schedule.function, schedule.hooks, is_async, name), tick), conn


def _delivery(
    payload: Any, topic: str, key: str | None, headers: Mapping[str, Any] | None, message_id: UUID | str | None,
    attempt: int,
) -> Delivery:  # fmt: skip
    texts.check_text(topic, "topic", MAX_TOPIC)
    texts.check_optional(key, "key", MAX_KEY)
    check_whole(attempt, "attempt=", 10_000)
    stated = {"cloudEvents_id": str(message_id or _new_id()), **({} if key is None else {"cloudEvents_subject": key})}
    body = documents.dump_any(payload, "payload").encode()
    return replace(Arrival(topic, body, {**(headers or {}), **stated}).read(), attempt=attempt)


def _delivered(
    handler: Callable[[Delivery], Any], delivery: Delivery, connection: Any
) -> tuple[Callable[[], Any], Connection | None]:
    what = f"the handler {getattr(handler, '__name__', type(handler).__name__)}"
    conn = _connection(connection, what, is_async=_is_async(handler))
    lent: Any = conn if conn is not None else NoConnection(what)
    delivery.connection = lent
    return partial(handler, delivery), conn


def _new_id() -> UUID:
    """Returns a new UUIDv7, as the database makes it."""
    milliseconds = int(datetime.now(UTC).timestamp() * 1000)
    return UUID(int=(milliseconds << 80) | 7 << 76 | (uuid.uuid4().int & ((1 << 76) - 1)) & ~(3 << 62) | 2 << 62)


def _connection(conn: Any, what: str, *, is_async: bool) -> Connection | None:
    if conn is None:
        return None
    found = psycopg_of(conn)
    require_color(found, what, is_async=is_async)
    return found


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function)


def _run(call: Callable[[], Any], conn: Connection | None, instead: str) -> Any:
    if inspect.iscoroutinefunction(call):
        no_loop(instead)
        return asyncio.run(_call_async(call, conn))
    return contextvars.copy_context().run(_call, call, conn)


async def _run_async(call: Callable[[], Any], conn: Connection | None) -> Any:
    if inspect.iscoroutinefunction(call):
        return await _call_async(call, conn)
    return await asyncio.to_thread(_call, call, conn)


def _call(call: Callable[[], Any], conn: Connection | None) -> Any:
    with savepoint(conn):
        return call()


async def _call_async(call: Callable[[], Any], conn: Connection | None) -> Any:
    async with savepoint_async(conn):
        return await call()
