"""Flow control over all workers: how many at once, how many a second, whose turn it is, and what comes first."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import limits_app
import psycopg
import pytest
from pipelines import QUICK, deployed, drain, value
from pydantic import BaseModel
from servers import Process, wait_for

from outbox import Pipeline, Run

Conn = psycopg.Connection[Any]


class Order(BaseModel):
    customer: str = ""
    urgency: int = 0


class Began:
    """What handlers saw: who began, in order, and how many were at work at once, in all and of each customer."""

    def __init__(self) -> None:
        self.entities: list[str] = []
        self.at: list[float] = []
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def __call__(self, run: Run[Order]) -> None:
        import asyncio

        self.entities.append(run.entity_id)
        self.at.append(time.monotonic())
        for who in ("", run.data.customer):
            self.now[who] += 1
            self.most[who] = max(self.most[who], self.now[who])
        await asyncio.sleep(0.003)
        self.now.subtract(("", run.data.customer))


def orders(handler: Callable[..., Any], **limits: Any) -> Pipeline[Order]:
    """NEW -> DONE, by a stage with these limits."""
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"DONE"})
    pipeline.stage("ship", on="NEW", to="DONE", **{"retry": QUICK, **limits})(handler)
    return pipeline


def submit(conn: Conn, pipeline: Pipeline[Order], customer: str, count: int, **data: Any) -> None:
    pipeline.submit_many(conn, [(f"{customer}{n}", Order(customer=customer, **data)) for n in range(count)])


def all_done(conn: Conn, count: int) -> bool:
    done = "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'"
    return bool(value(conn, done) == count) and value(conn, "SELECT count(*) FROM outbox.jobs") == 0


@pytest.mark.parametrize("limits", [{"concurrency": 3}, {"concurrency": 3, "priority": "urgency"}])
def test_so_many_are_at_work_at_once(conn: Conn, dsn: str, limits: dict[str, Any]) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, **limits))
    submit(conn, pipeline, "a", 100)
    drain(pipeline, dsn)
    assert all_done(conn, 100)
    assert began.most[""] == 3


def test_each_partition_has_so_many_at_once(conn: Conn, dsn: str) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, partition=lambda d: d.customer, concurrency=2, total_concurrency=5))
    for customer in "abcd":
        submit(conn, pipeline, customer, 30)
    drain(pipeline, dsn)
    assert all_done(conn, 120)
    assert {who: began.most[who] for who in "abcd"} == dict.fromkeys("abcd", 2)
    assert began.most[""] == 5


def test_who_has_ten_has_his_turn_beside_who_has_thousands(conn: Conn, dsn: str) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, partition="customer", total_concurrency=4))
    submit(conn, pipeline, "big", 2_000)
    submit(conn, pipeline, "small", 10)
    submit(conn, pipeline, "tiny", 1)
    drain(pipeline, dsn)
    assert all_done(conn, 2_011)
    last = max(n for n, entity in enumerate(began.entities) if entity.startswith(("small", "tiny")))
    assert last < 40


def test_the_highest_comes_first_and_a_change_of_the_data_counts(conn: Conn, dsn: str) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, priority=lambda d: d.urgency, concurrency=1))
    for entity, urgency in (("low", -5), ("none", 0), ("high", 7), ("higher", 9), ("raised", 0)):
        pipeline.submit(conn, entity, Order(urgency=urgency))
    conn.execute("""UPDATE outbox.workflow_states SET metadata = '{"urgency": 100}' WHERE entity_id = 'raised'""")
    drain(pipeline, dsn)
    assert began.entities == ["raised", "higher", "high", "none", "low"]


def exact(moments: list[float], rate: int) -> bool:
    """Whether no window of a second has more than `rate` of them."""
    moments = sorted(moments)
    return all(later - earlier >= 1 for earlier, later in zip(moments, moments[rate:], strict=False))


def test_a_rate_is_kept_in_every_window_of_a_second(conn: Conn, dsn: str) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, rate="14/second"))
    submit(conn, pipeline, "a", 45)
    drain(pipeline, dsn)
    assert all_done(conn, 45)
    assert exact(began.at, 14)
    assert began.at[-1] - began.at[0] < 44 / 14 * 1.15


# Real processes. What they note is by the machine's monotonic clock, which they share.

APP = {"crowded": "crowded", "each": "each", "paced": "paced", "paced each": "paced_each"}


class Floor:
    """Three workers on one limited pipeline, and what their handlers have noted."""

    def __init__(self, conn: Conn, spawn: Callable[..., Process], notes: Path, name: str, **env: str) -> None:
        self.conn, self.notes, self.name = conn, notes, name
        self.pipeline = deployed(conn, limits_app.pipeline(name))
        self._spawn = spawn
        self._env = {"NOTES": str(notes), **env}
        self.workers = [self.worker() for _ in range(3)]
        registered = "SELECT count(*) FROM outbox.workers"
        wait_for(lambda: value(conn, registered) == 3)

    def worker(self) -> Process:
        return self._spawn("worker", "--app", f"limits_app:{APP[self.name]}", env=self._env)

    def submit(self, *customers: str, count: int) -> None:
        items = [(f"{customer}{n}", {"customer": customer}) for n in range(count) for customer in customers]
        self.pipeline.submit_many(self.conn, items)

    def lines(self) -> list[tuple[float, int, str, str, str]]:
        lines = [line.split() for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
        return [(float(at), int(pid), what, entity, who) for at, pid, what, entity, who in lines]

    def began(self, customer: str | None = None) -> list[float]:
        return [at for at, _, what, _, who in self.lines() if what == "begins" and customer in (None, who)]

    def most_at_once(self, killed: dict[int, float], customer: str | None = None) -> int:
        """How many were at work at once; those of a process that was killed, until then."""
        changes = [
            (at, 1 if what == "begins" else -1, pid, entity)
            for at, pid, what, entity, who in self.lines()
            if customer in (None, who)
        ]
        ended = {(pid, entity) for _, change, pid, entity in changes if change < 0}
        changes += [
            (killed[pid], -1, pid, entity)
            for _, change, pid, entity in changes
            if change > 0 and (pid, entity) not in ended
        ]
        now = most = 0
        for _, change, _, _ in sorted(changes):
            now += change
            most = max(most, now)
        return most

    def done(self, count: int) -> None:
        wait_for(lambda: all_done(self.conn, count), 60, f"{count} done")


@pytest.fixture
def floor(conn: Conn, spawn: Callable[..., Process], tmp_path: Path) -> Callable[..., Floor]:
    return lambda name, **env: Floor(conn, spawn, tmp_path / "notes", name, **env)


@pytest.mark.parametrize(("name", "most"), [("crowded", 5), ("each", 6)])
def test_so_many_are_at_work_over_all_processes_of_which_some_are_killed(
    floor: Callable[..., Floor], name: str, most: int
) -> None:
    there = floor(name)
    there.submit("a", "b", "c", "d", count=40)
    killed: dict[int, float] = {}
    for _ in range(3):
        so_far = len(there.lines())
        wait_for(lambda so_far=so_far: len(there.lines()) > so_far + 20)
        busy = there.lines()[-1][1]
        victim = next(worker for worker in there.workers if worker.popen.pid == busy)
        victim.kill9()
        killed[busy] = time.monotonic()
        there.workers = [worker for worker in there.workers if worker is not victim] + [there.worker()]
    there.done(160)
    assert there.most_at_once(killed) == most
    if name == "each":
        assert {customer: there.most_at_once(killed, customer) for customer in "abcd"} == dict.fromkeys("abcd", 2)
    assert len({pid for _, pid, *_ in there.lines()}) > 3


def test_a_rate_over_three_processes_is_exact(floor: Callable[..., Floor]) -> None:
    there = floor("paced")
    there.submit("a", count=70)
    there.done(70)
    began = there.began()
    assert exact(began, 20)
    assert began[-1] - began[0] < 69 / 20 * 1.25
    assert len({pid for _, pid, *_ in there.lines()}) > 1


def test_each_partition_has_its_rate_and_all_have_theirs(floor: Callable[..., Floor]) -> None:
    there = floor("paced each")
    there.submit("a", "b", "c", "d", count=12)
    there.done(48)
    assert exact(there.began(), 12)
    assert all(exact(there.began(customer), 5) for customer in "abcd")
    began = there.began()
    assert began[-1] - began[0] < 47 / 12 * 1.3
