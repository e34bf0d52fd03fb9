"""Waits until a workflow has come to a status: by polling, and on a connection of its own woken by NOTIFY.

Polling is the truth, and a notification only makes it sooner. See sql/functions/notify.sql.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from .. import documents, texts
from ..checks import MAX_DELAY, MAX_NAME, as_delay
from ..database import session, statements
from ..database.drivers.connection import AsyncDoor
from ..database.drivers.recognise import door
from ..database.statements import text_array
from ..database.steps import Statement, perform, perform_async
from ..errors import InvalidInput, NeverReached, NotFound, WaitTimeout
from . import lists, why
from .execute import Steps, taking, taking_async

SQL = statements.load("wait")
Data = TypeVar("Data")

FIRST, LONGEST = 0.02, 1.0
"""Seconds between two looks: at first, and after it was doubled with each look."""


@dataclass(frozen=True, slots=True)
class Nap:
    """A step that waits for so many seconds, or less if there may be news."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is waited for: that a workflow comes to one of the statuses (none: that it ends) after a version."""

    pipeline: str
    entity_id: str
    statuses: tuple[str, ...]
    since: int

    def told_by(self, payload: str) -> bool:
        """Tells whether a notification is about this workflow."""
        with suppress(ValueError, TypeError, KeyError):
            told = json.loads(payload)
            return bool((told["pipeline"], told["entity_id"]) == (self.pipeline, self.entity_id))
        return False


def wait(
    pipeline: lists.Loader[Data], where: Any, entity_id: str, statuses: tuple[str, ...], timeout: Any, since: int,
    listens: bool,
) -> Any:  # fmt: skip
    """Waits for a workflow. See Pipeline.wait."""
    wanted, seconds = _checked(pipeline.name, entity_id, statuses, timeout, since)
    steps = _wait(pipeline, wanted, seconds)
    if isinstance(where, str):
        return _wait_on_own(where, steps, wanted, listens)
    found = door(where)
    if isinstance(found, AsyncDoor):
        return _perform_async(steps, taking_async(found), asyncio.sleep)
    return _perform(steps, taking(found), time.sleep)


async def wait_async(
    pipeline: lists.Loader[Data], dsn: str, entity_id: str, statuses: tuple[str, ...], timeout: Any, since: int,
    listens: bool,
) -> lists.Workflow[Data]:  # fmt: skip
    """Waits for a workflow on a connection of its own, async. See Pipeline.wait_async."""
    wanted, seconds = _checked(pipeline.name, entity_id, statuses, timeout, since)
    if not isinstance(dsn, str):
        raise InvalidInput("dsn", f"must be a DSN, not {type(dsn).__name__}: on a connection, await `wait`")
    async with await session.connect_async(dsn, "wait", pooled=True) as conn:

        async def nap(seconds: float) -> None:
            async for notice in conn.notifies(timeout=seconds):
                if wanted.told_by(notice.payload):
                    break

        if listens:
            await conn.execute(SQL["listen"])
        found = door(conn)
        assert isinstance(found, AsyncDoor)
        workflow: lists.Workflow[Data] = await _perform_async(
            _wait(pipeline, wanted, seconds), taking_async(found), nap
        )
        return workflow


def standing(pipeline: str, entity_id: str) -> Steps[tuple[str | None, bool, bool]]:
    """Returns a workflow's status (None: there is none), whether it has ended, and whether its job is dead."""
    about = {"pipeline": pipeline, "entity": entity_id, "statuses": text_array(()), "since": 0}
    ((status, ended, dead, *_),) = yield SQL["standing"], about
    return status, ended, dead


def _wait_on_own(dsn: str, steps: Any, wanted: Wanted, listens: bool) -> Any:
    with session.connect(dsn, "wait", pooled=True) as conn:

        def nap(seconds: float) -> None:
            for notice in conn.notifies(timeout=seconds):
                if wanted.told_by(notice.payload):
                    break

        if listens:
            conn.execute(SQL["listen"])
        found = door(conn)
        assert not isinstance(found, AsyncDoor)
        return _perform(steps, taking(found), nap)


def _perform(steps: Any, take: Callable[[Statement], Any], nap: Callable[[float], Any]) -> Any:
    return perform(steps, lambda step: nap(step.seconds) if isinstance(step, Nap) else take(step))


async def _perform_async(steps: Any, take: Callable[[Statement], Any], nap: Callable[[float], Any]) -> Any:
    return await perform_async(steps, lambda step: nap(step.seconds) if isinstance(step, Nap) else take(step))


def _checked(
    pipeline: str, entity_id: str, statuses: tuple[str, ...], timeout: Any, since: int
) -> tuple[Wanted, float]:
    entity_id = documents.entity(entity_id)
    for status in statuses:
        texts.check_text(status, "statuses", MAX_NAME)
    seconds = as_delay(timeout)
    if seconds is None:
        raise InvalidInput("timeout", f"must be a time from 0 to {MAX_DELAY:g} seconds, not {texts.shown(timeout)}")
    if isinstance(since, bool) or not isinstance(since, int) or since < 0:
        raise InvalidInput("since", f"is a version of a workflow, not {texts.shown(since)}")
    return Wanted(pipeline, entity_id, tuple(str(status) for status in statuses), since), seconds


def _wait(
    pipeline: lists.Loader[Data], wanted: Wanted, seconds: float
) -> Generator[Statement | Nap, Any, lists.Workflow[Data]]:
    until, pause = time.monotonic() + seconds, FIRST
    about: dict[str, Any] = {
        "pipeline": wanted.pipeline, "entity": wanted.entity_id, "statuses": text_array(wanted.statuses),
        "since": wanted.since,
    }  # fmt: skip
    while True:
        ((status, ended, dead, reached, writes, still),) = yield SQL["standing"], about
        if status is None:
            raise NotFound(f'there is no workflow of entity "{wanted.entity_id}" in pipeline "{wanted.pipeline}"')
        found = yield from lists.one(pipeline, wanted.entity_id) if reached or ended or dead else _nothing()
        if found is not None and (reached or (ended and not wanted.statuses)):
            return found
        if found is not None:
            raise NeverReached(*(yield from _told(wanted, found.status)))
        if writes:
            raise InvalidInput("conn", "is in a transaction that has written: nothing moves on until it is committed")
        if still:
            raise InvalidInput("conn", "is in a transaction with one snapshot, which sees no change: use another one")
        left = until - time.monotonic()
        if left <= 0:
            raise WaitTimeout(*(yield from _told(wanted, status)))
        yield Nap(min(pause, left))
        pause = min(2 * pause, LONGEST)


def _nothing() -> Generator[Statement, Any, None]:
    yield from ()


def _told(wanted: Wanted, status: str) -> Generator[Statement, Any, tuple[Any, ...]]:
    """Returns what an error says of a workflow that has not come to where it was waited for."""
    because = yield from why.asked(wanted.pipeline, wanted.entity_id)
    return wanted.pipeline, wanted.entity_id, status, wanted.statuses, because
