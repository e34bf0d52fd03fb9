"""Defines the workload: handlers that have effects, fail at random, and publish one message for each change.

It runs as real worker processes. Effects go into tables without any unique constraint. Those "outside" the engine's
transaction are written by a connection straight to Postgres, those "inside" by the handler's connection. Those of the
"ledger" are charges in the bank's book.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from pydantic import BaseModel

from outbox import (
    Ask,
    Backoff,
    Done,
    Go,
    NotDone,
    Pipeline,
    Question,
    Reject,
    Retry,
    Run,
    SyncRun,
    WaitForApproval,
    WaitForChildren,
    WaitForSignal,
)
from outbox.database import killpoints
from outbox.database.sockets import shut

from . import bank
from .history import Rules, Stage

WORLD = os.environ.get("CHAOS_WORLD", "")
PATIENCE = 4.0
"""Seconds after which an effect outside has failed: its server was failed over from."""
TROUBLE = float(os.environ.get("CHAOS_TROUBLE", "0.03"))
"""The probability that a handler fails at each place where it may fail."""


class Data(BaseModel):
    seen: int = 0
    customer: int = 0


def retry(attempts: int) -> Backoff:
    return Backoff(first=0.05, factor=2, max=1, attempts=attempts)


RENAMED = {"REVIEW": "IN_REVIEW", "CALLED": "RUNG", "REJECTED": "DECLINED", "EXPIRED": "LATE"}
"""What the second version of the application calls some statuses: two in which workflows wait, and two that waits lead to."""

VERSIONS: dict[str, dict[str, str]] = {"first": {old: old for old in RENAMED}, "second": RENAMED}
VERSION_FILE = Path(os.environ.get("CHAOS_VERSION_FILE", "version"))
"""A file that names the version that processes run which are started from now on. Until there is one, the first."""


def version() -> str:
    """Returns which version this process runs."""
    if named := os.environ.get("CHAOS_VERSION"):
        return named
    return VERSION_FILE.read_text() if VERSION_FILE.exists() else "first"


NOW = VERSIONS[version()]
REVIEW, CALLED, REJECTED, EXPIRED = NOW.values()
chaos = Pipeline("chaos", data=Data, initial="NEW", final={"DONE", REJECTED, EXPIRED}, cancelled="CANCELLED")
for other in VERSIONS.values():
    for status, name in NOW.items():
        if other[status] != name:
            chaos.rename(other[status], name)


def trouble(failing: Callable[[str], Exception] = RuntimeError, often: float = 1) -> None:
    if random.random() < TROUBLE * often:
        raise failing("words that Postgres can't store: \0")


MISCHIEF = Path(os.environ.get("CHAOS_MISCHIEF", "mischief"))
"""A file that names what handlers do wrong at present, besides failing. Most of the time it doesn't exist."""


def does(wrong: str, often: float) -> bool:
    """Returns whether a handler does this wrong thing now, if it is active, with the probability `often`."""
    try:
        return MISCHIEF.read_text() == wrong and random.random() < often
    except FileNotFoundError:
        return False


async def exits() -> None:
    sys.exit(3)


def reckless() -> None:
    """Does what harms the process more than the handler."""
    if random.random() < 0.5:
        asyncio.create_task(exits())  # noqa: RUF006
    else:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join()


class World:
    """Writes to the outside world on one connection, which is reopened when it breaks, or is answered nothing for long."""

    def __init__(self) -> None:
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._turn = asyncio.Lock()

    async def write(self, run: Run[Data]) -> None:
        async with self._turn:
            if self._conn is None or self._conn.closed:
                self._conn = await psycopg.AsyncConnection.connect(WORLD, autocommit=True)
            # Not by a timeout of asyncio: psycopg would ask a server that hangs to cancel, and wait for it.
            timer = asyncio.get_running_loop().call_later(PATIENCE, shut, self._conn)
            try:
                await self._conn.execute(
                    "INSERT INTO world.outside (workflow_id, stage, attempt, key) VALUES (%s, %s, %s, %s)",
                    (run.workflow_id, run.stage, run.attempt, run.idempotency_key),
                )
            finally:
                timer.cancel()


world = World()


@chaos.stage("check", on="NEW", running="CHECKING", to="CHECKED", retry=retry(12), timeout=10)
async def check(run: Run[Data]) -> Data:
    await asyncio.sleep(random.random() * 0.02)
    if does("block", 0.02):
        time.sleep(random.uniform(0.5, 6))  # noqa: ASYNC251  # longer than a lease
    if does("be reckless", 0.05):
        reckless()
    trouble(lambda words: Retry(message=words))
    killpoints.passing("K2")
    await world.write(run)
    trouble()
    run.publish("chaos.checked", {"entity": run.entity_id})
    return Data(seen=run.data.seen + 1, customer=random.randrange(4))


OPTIONS = {"approve": "APPROVED", "reject": REJECTED}
GROUP = "clients"
ONE = Question("Is it fine?", options=OPTIONS)
VOTED = Question("Do two say so?", options=OPTIONS, approvers={GROUP: 2})


SIGNAL = "go"
Decided = Go[Data] | WaitForApproval[Data] | WaitForSignal[Data] | WaitForChildren[Data]


@chaos.stage(
    "decide", on="CHECKED", to={"APPROVED", REVIEW, CALLED, "FAMILY"}, retry=retry(12), timeout=5, concurrency=1,
    partition=lambda d: d.customer, total_concurrency=3, priority="seen",
)  # fmt: skip
def decide(run: Run[Data]) -> Decided:
    time.sleep(random.random() * 0.005)
    if does("hang", 0.05):
        time.sleep(random.choice([3600, random.uniform(4, 12)]))  # for ever, or past its timeout
    trouble()
    run.publish("chaos.decided", {"entity": run.entity_id})
    return waits(run) if random.random() < 0.45 else Go("APPROVED")


def waits(run: Run[Data]) -> Decided:
    """Waits for one of all that a workflow can wait for. Each wait ends by itself in the end."""
    within = timedelta(seconds=random.choice([4, 4, 12]) * random.uniform(0.1, 1))  # the long ones meet a deploy
    kind = random.choice(["people"] * 6 + ["a signal", "a signal", "its time", "children"])
    if kind == "its time":
        return Go("APPROVED", after=within / 4)
    if kind == "a signal":
        to = random.choice(["APPROVED", REJECTED])
        return WaitForSignal(SIGNAL, to=to, timeout=within, on_timeout=EXPIRED, status=CALLED)
    if kind == "children" and "/" not in run.entity_id:  # which have none themselves
        for number in range(random.randint(1, 2)):
            run.spawn(chaos, f"{run.entity_id}/{number}", Data())
        return WaitForChildren(
            to="APPROVED", timeout=within + timedelta(seconds=2), on_timeout=EXPIRED, status="FAMILY"
        )
    asked = random.choice([[ONE], [VOTED], [ONE, VOTED], [ONE, ONE]])
    return WaitForApproval(questions=asked, first={"reject"}, deadline=within, on_deadline=EXPIRED, status=REVIEW)


# Some workers take several workflows in one transaction, all at once or in turns. Some call a plain function in a thread.
BATCH, SHARE = random.choice([(None, None), (5, None), *[(None, 20)] * 4])
PLAIN = random.random() < 0.5
ACT_TIMEOUT = 3.0

GUEST = "chaos_guest"
SETTINGS = {"world.turn": "mine", "search_path": "world", "TimeZone": "Asia/Tokyo", "statement_timeout": "7777s"}
"""What handlers set, and leave."""

LEFT = (
    *(f"SET {scope}{name} = '{value}'" for name, value in SETTINGS.items() for scope in ("LOCAL ", "")),
    f"SET LOCAL ROLE {GUEST}",
    "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
    "LISTEN mine",
    "SELECT pg_advisory_lock_shared(7777)",
)
"""All that one leaves in its session: the next one must not find it."""

FOUND = f"""
    SELECT name || ' is ' || value FROM (VALUES {", ".join(map(str, SETTINGS.items()))}) AS s (name, value)
    WHERE current_setting(name, true) = value
    UNION ALL SELECT 'role ' || current_user WHERE current_user = '{GUEST}'
    UNION ALL SELECT 'cursor ' || name FROM pg_cursors WHERE name = 'mine'
    UNION ALL SELECT 'listens to ' || name FROM pg_listening_channels() AS name
    UNION ALL SELECT 'an advisory lock' FROM pg_locks WHERE locktype = 'advisory' AND objid = 7777 AND pid = pg_backend_pid()
"""

INSIDE = f"""
    INSERT INTO world.inside (workflow_id, stage, attempt, found)
    SELECT %s, %s, %s, (SELECT string_agg(what, ', ') FROM ({FOUND}) AS f (what))
"""
SLEEP = "SELECT pg_sleep(%s)"


def acting(run: Run[Data]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yields the statements of a handler that fails before, between and after them, and may take longer than it has."""
    trouble()
    yield INSIDE, (run.workflow_id, run.stage, run.attempt)
    if not BATCH:  # else the next one is a part of the same handler
        yield random.choice(LEFT), ()
    if random.random() < TROUBLE / 10:
        yield SLEEP, (ACT_TIMEOUT + random.choice([0.3, 2]),)
    trouble()
    run.publish("chaos.shipped", {"entity": run.entity_id})


async def act(run: Run[Data]) -> None:
    for query, values in acting(run):
        await run.connection.execute(query, values)


def act_plainly(run: Run[Data]) -> None:
    for query, values in acting(run):
        run.connection.execute(query, values)


async def act_on_all(runs: list[Run[Data]]) -> None:
    for run in runs:
        await act(run)


chaos.stage(
    "act",
    on="APPROVED",
    to="SHIPPED",
    transaction=True,
    batch=BATCH,
    share=SHARE,
    retry=retry(12),
    timeout=ACT_TIMEOUT,
    concurrency=30,
)(act_on_all if BATCH else act_plainly if PLAIN else act)


def pay(key: str) -> str:
    """Charges a key. The bank may not be reached, refuse, or not answer."""
    trouble()
    if random.random() >= TROUBLE:
        bank.charge(key)
    elif bank.refuse(key):
        raise NotDone("the bank is closed")
    trouble(often=3)
    return bank.receipt(key)


async def transfer(*, idempotency_key: str) -> str:
    await asyncio.sleep(random.random() * 0.02)
    return pay(idempotency_key)


def transfer_plainly(*, idempotency_key: str) -> str:
    time.sleep(random.random() * 0.005)
    if does("hang", 0.05):
        time.sleep(random.uniform(4, 12))  # it goes on in its thread, and pays late
    return pay(idempotency_key)


transfer_plainly.__qualname__ = transfer.__qualname__  # for the ledger, what has begun in one goes on in the other


def look_up(idempotency_key: str) -> Done[str] | NotDone | Ask:
    trouble()
    if random.random() < TROUBLE:
        return Ask("The bank does not say. Was it charged?")
    return Done(bank.receipt(idempotency_key)) if bank.look(idempotency_key) else NotDone()


EFFECTS: tuple[tuple[str, Any], ...] = (("charge-ask", "ask"), ("charge-look-up", look_up), ("charge-repeat", "repeat"))
"""Effects by their names, and what happens if one is unknown."""


def effect_of(run: Run[Data] | SyncRun[Data]) -> tuple[str, Any]:
    """Returns the effect that a workflow has, in all its attempts."""
    return EFFECTS[int(str(run.workflow_id)[-4:], 16) % len(EFFECTS)]


async def charge(run: Run[Data]) -> None:
    trouble()
    name, on_unknown = effect_of(run)
    receipt = await run.effect(name, transfer, on_unknown=on_unknown)
    trouble()
    run.publish("chaos.paid", {"entity": run.entity_id, "receipt": receipt})


def charge_plainly(run: SyncRun[Data]) -> None:
    trouble()
    name, on_unknown = effect_of(run)
    receipt = run.effect(name, transfer_plainly, on_unknown=on_unknown)
    trouble()
    run.publish("chaos.paid", {"entity": run.entity_id, "receipt": receipt})


chaos.stage(
    "charge", on="SHIPPED", to="PAID", transaction=random.random() < 0.3, retry=retry(12), timeout=5,
)(charge_plainly if random.random() < 0.5 else charge)  # fmt: skip


@chaos.stage("notify", on="PAID", to="DONE", retry=retry(3), timeout=10, rate="400/second")
async def notify(run: Run[Data]) -> None:
    trouble(Reject)
    trouble()
    run.publish("chaos.done", {"entity": run.entity_id})


BY_HAND = {REVIEW: {"APPROVED", REJECTED}, CALLED: {"APPROVED", REJECTED}, "FAMILY": {"APPROVED"}}
for on, to in BY_HAND.items():
    chaos.allow(on, to={*to, EXPIRED})


def least_waits(backoff: Backoff) -> tuple[float, ...]:
    """Returns the least delays that a back-off promises, computed without the engine's code."""
    grown = [backoff.first * backoff.factor**n for n in range(backoff.attempts - 1)]
    return tuple(min(backoff.max, wait) * (1 - backoff.jitter) for wait in grown)


def rules() -> Rules:
    """Returns what the checker accepts as legal, with the statuses' names of the first version."""
    twelve, three = least_waits(retry(12)), least_waits(retry(3))
    stages = (
        Stage("check", "NEW", frozenset({"CHECKED"}), 12, "outside", "CHECKING", twelve),
        Stage(
            "decide",
            "CHECKED",
            frozenset({"APPROVED", "REVIEW", "CALLED", "FAMILY"}),
            12,
            backoff=twelve,
            most=3,
            most_each=1,
        ),
        Stage("act", "APPROVED", frozenset({"SHIPPED"}), 12, "inside", backoff=twelve, most=30),
        Stage("charge", "SHIPPED", frozenset({"PAID"}), 12, "ledger", backoff=twelve),
        Stage("notify", "PAID", frozenset({"DONE"}), 3, backoff=three, rejects=True),
    )
    stages_of = {status for stage in stages for status in (stage.on, stage.running) if status}
    waiting = frozenset({"REVIEW", "CALLED", "FAMILY"})
    answers = frozenset((on, to) for on in ("REVIEW", "CALLED") for to in ("APPROVED", "REJECTED"))
    ends = answers | {("FAMILY", "APPROVED")}
    return Rules(
        "NEW",
        frozenset({"DONE", "REJECTED", "CANCELLED", "EXPIRED"}),
        stages,
        by_hand=ends | {(status, "CANCELLED") for status in stages_of | waiting},
        asking=frozenset({"REVIEW"}),
        called=frozenset({"CALLED"}),
        joining=frozenset({"FAMILY"}),
        timed=frozenset((status, "EXPIRED") for status in waiting),
        cancelled="CANCELLED",
        renamed={new: old for old, new in RENAMED.items()},
        repeated=frozenset(name for name, on_unknown in EFFECTS if on_unknown == "repeat"),
    )
