"""Flow control over all workers: how many at once, how many a second, whose turn it is, and what comes first."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from apps import limits as limits_app
from kit import fake_time
from kit.commands import Outbox
from kit.pipelines import QUICK, deployed, drain, value
from kit.servers import DEADLINE, Process, wait_for
from outbox import DefinitionError, NotDeployed, Pipeline, Reject, Retry, Run, Worker
from outbox.database import statements
from outbox.definition import deploy
from outbox.engine import claim, commit, handle, pacing
from outbox.engine.apart import ALL
from outbox.engine.claimer import POLL_FIRST
from outbox.engine.job import Job
from outbox.engine.lane import Lane
from outbox.engine.pacing import LATE, ServerClock

Conn = psycopg.Connection[Any]


class Order(BaseModel):
    customer: str = ""
    urgency: int = 0


class Began:
    """What handlers saw: who began, in order, and how many were at work at once, in all and of each customer."""

    def __init__(self) -> None:
        self.entities: list[str] = []
        self.start_times: list[float] = []  # the start times that the database gave
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def __call__(self, run: Run[Order]) -> None:
        self.entities.append(run.entity_id)
        self.start_times.append(run._job.start_time)
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
    assert began.most[""] == 5
    for customer in "abcd":  # two of one alone: a claim takes both
        pipeline.submit_many(conn, [(f"{customer}-{n}", Order(customer=customer)) for n in range(2)])
        drain(pipeline, dsn)
    assert all_done(conn, 128)
    assert {who: began.most[who] for who in "abcd"} == dict.fromkeys("abcd", 2)


def test_ten_jobs_of_a_partition_have_their_turn_beside_thousands_of_another(conn: Conn, dsn: str) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, partition="customer", total_concurrency=4))
    submit(conn, pipeline, "big", 2_000)
    submit(conn, pipeline, "small", 10)
    submit(conn, pipeline, "tiny", 1)
    drain(pipeline, dsn)
    assert all_done(conn, 2_011)
    last = max(n for n, entity in enumerate(began.entities) if entity.startswith(("small", "tiny")))
    assert last < 40


def test_partitions_have_equal_shares_of_a_number_that_they_do_not_divide(conn: Conn) -> None:
    """Five at a time of four: each has one, and the fifth goes round."""
    pipeline = deployed(conn, orders(lambda run: None, partition="customer", total_concurrency=100))
    for customer in "abcd":
        submit(conn, pipeline, customer, 10)
    lane = Lane(pipeline.stages["ship"], 10)
    worker = value(conn, "INSERT INTO outbox.workers (name, stages, lease) VALUES ('w', '{}', '1 h') RETURNING id")
    shares = []
    for _ in range(4):
        rows = conn.execute(*claim.request_limited(worker, [(lane, 5)], 0.0, careful=True)).fetchall()
        claim.receive_limited(worker, {("orders", "ship"): lane}, rows, ServerClock(), 0.0)
        shares.append(Counter(job.entity_id[0] for job in lane.waiting))
        lane.waiting.clear()
    assert [sorted(share.values()) for share in shares] == [[1, 1, 1, 2]] * 4
    assert sum(shares, Counter()) == Counter(a=5, b=5, c=5, d=5)


def test_the_highest_comes_first_and_a_change_of_the_data_counts(conn: Conn, dsn: str) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, priority=lambda d: d.urgency, concurrency=1))
    for entity, urgency in (("low", -5), ("none", 0), ("high", 7), ("higher", 9), ("raised", 0)):
        pipeline.submit(conn, entity, Order(urgency=urgency))
    conn.execute("""UPDATE outbox.workflow_states SET metadata = '{"urgency": 100}' WHERE entity_id = 'raised'""")
    drain(pipeline, dsn)
    assert began.entities == ["raised", "higher", "high", "none", "low"]


class RunningWorker:
    """A worker in a thread, until the end of the block."""

    def __init__(self, pipeline: Pipeline[Any], dsn: str) -> None:
        self._worker = Worker(pipeline, dsn)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._worker.run()))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._worker.stop()
        self._thread.join(DEADLINE)


def exact(start_times: list[float], rate: int) -> bool:
    """Whether no window of a second has more than `rate` starts, though each is up to LATE after its start time."""
    start_times = sorted(start_times)
    return all(later - earlier >= 1 + LATE for earlier, later in zip(start_times, start_times[rate:], strict=False))


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Each start: its start time, and the engine's last look at the clock before it calls the handler.

    What this machine does between that look and the handler's first line is not the engine's.
    """
    found: list[tuple[float, float]] = []

    def is_late(start_time: float, now: float) -> bool:
        late = pacing.is_late(start_time, now)
        if not late:
            found.append((start_time, now))
        return late

    monkeypatch.setattr(handle, "is_late", is_late)
    return found


def in_time(starts: list[tuple[float, float]]) -> bool:
    return all(start_time <= now <= start_time + LATE for start_time, now in starts)


def test_a_rate_is_kept_in_every_window_of_a_second(conn: Conn, dsn: str, starts: list[tuple[float, float]]) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, rate="14/second"))
    submit(conn, pipeline, "a", 45)
    drain(pipeline, dsn)
    assert all_done(conn, 45)
    assert exact(began.start_times, 14)
    assert len(starts) == 45
    assert in_time(starts)


@pytest.mark.parametrize(
    ("limits", "customers", "count", "seconds", "workers"),
    [
        ({"rate": "14/second"}, "a", 45, 44 / 14 * 1.15, 1),
        ({"rate": "20/second"}, "a", 70, 69 / 20 * 1.25, 3),
        ({"rate": "5/second", "partition": "customer", "total_rate": "12/second"}, "abcd", 12, 47 / 12 * 1.3, 3),
    ],
    ids=["one worker", "three workers", "partitions"],
)
def test_a_rate_is_used_to_the_full(
    conn: Conn, admin_dsn: str, limits: dict[str, Any], customers: str, count: int, seconds: float, workers: int
) -> None:
    """By workers who ask when they were told to ask again, on a clock that stands still while they do."""
    pipeline = deployed(conn, orders(lambda run: None, **limits))
    for customer in customers:
        submit(conn, pipeline, customer, count)
    fake_time.stop(admin_dsn)
    register = "INSERT INTO outbox.workers (name, stages, lease) VALUES ('w', '{}', '1 h') RETURNING id"
    due = [(0.0, value(conn, register)) for _ in range(workers)]
    start_times: list[tuple[str, float]] = []
    while due:
        now, worker = heappop(due)
        fake_time.move(conn, now)
        lane = Lane(pipeline.stages["ship"], 10)
        rows = conn.execute(*claim.request_limited(worker, [(lane, 10)], 0.0, careful=True)).fetchall()
        got = claim.receive_limited(worker, {("orders", "ship"): lane}, rows, ServerClock(), 0.0)
        found, again = got.get(lane, (0, None))
        start_times += [(job.entity_id[0], job.start_time) for job in lane.waiting]
        if again is not None:
            heappush(due, (now + max(again, 0.001 if found else POLL_FIRST), worker))
    every = sorted(start_time for _, start_time in start_times)
    assert len(every) == len(customers) * count
    assert exact(every, int(limits.get("total_rate", limits["rate"]).split("/")[0]))
    if len(customers) > 1:
        assert all(
            exact([start_time for who, start_time in start_times if who == customer], 5) for customer in customers
        )
    assert every[-1] - every[0] < seconds


def test_what_plain_sql_writes_has_its_place_too(conn: Conn, dsn: str) -> None:
    began = Began()
    deployed(conn, orders(began, priority="urgency", partition="customer", total_concurrency=1))
    for entity, data in (
        ("b", '{"customer": "x"}'),
        ("yes", '{"customer": "x", "urgency": true}'),
        ("huge", '{"customer": "x", "urgency": 1e300}'),
        ("text", '{"customer": "x", "urgency": "9"}'),
        ("nobody", '{"customer": null}'),
        ("many", '{"customer": ["' + "y" * 900 + '"]}'),
    ):
        conn.execute(
            "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('orders', %s, %s)",
            (entity, data),
        )
    places = "SELECT w.entity_id, length(j.partition), priority FROM outbox.jobs AS j JOIN outbox.workflow_states AS w ON w.id = workflow_id"
    assert {entity: place for entity, *place in conn.execute(places.encode()).fetchall()} == {
        "b": [1, 0], "yes": [1, 1], "huge": [1, 2**31 - 1], "text": [1, 0], "nobody": [0, 0], "many": [200, 0],
    }  # fmt: skip


def test_a_job_that_is_made_again_or_comes_later_keeps_to_the_limits(conn: Conn, dsn: str) -> None:
    def ship(run: Run[Order]) -> None:
        if run.attempt == 1:
            raise Retry(after=0.01)
        if not pardoned:
            raise Reject("no")

    pardoned: list[bool] = []
    pipeline = deployed(conn, orders(ship, partition="customer", concurrency=1))
    submit(conn, pipeline, "a", 3)
    wait_for(lambda: drain(pipeline, dsn) and value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 3)
    pardoned.append(True)
    Outbox(dsn)("retry", "--all")
    assert value(conn, "SELECT array_agg(partition) FROM outbox.jobs") == ["a", "a", "a"]
    wait_for(lambda: drain(pipeline, dsn) and all_done(conn, 3))


def test_what_may_kill_its_worker_is_taken_alone(conn: Conn, dsn: str) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, concurrency=50))
    submit(conn, pipeline, "a", 10)
    conn.execute("UPDATE outbox.jobs SET careful = true")
    drain(pipeline, dsn)
    assert all_done(conn, 10)
    assert began.most[""] == 1


def test_a_paused_stage_begins_nothing(conn: Conn, dsn: str) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, rate="1000/second"))
    submit(conn, pipeline, "a", 3)
    Outbox(dsn)("pause", "ship")
    drain(pipeline, dsn)
    assert began.entities == []
    Outbox(dsn)("resume", "ship")
    drain(pipeline, dsn)
    assert all_done(conn, 3)


def test_a_handlers_own_transactions_and_lists_keep_to_them_too(conn: Conn, dsn: str) -> None:
    sizes: list[int] = []

    def ship(runs: list[Run[Order]]) -> None:
        sizes.append(len(runs))
        runs[0].connection.execute("SELECT pg_sleep(0.01)")

    pipeline = deployed(conn, orders(ship, transaction=True, batch=4, partition="customer", concurrency=3))
    for customer in "ab":
        submit(conn, pipeline, customer, 20)
    drain(pipeline, dsn)
    assert all_done(conn, 40)
    assert max(sizes) <= 4


def test_a_deploy_says_what_changes_and_what_waits_gets_its_new_place(conn: Conn, dsn: str) -> None:
    began = Began()
    plain = deployed(conn, orders(began))
    submit(conn, plain, "a", 2)
    limited = orders(began, partition=lambda d: d.customer, rate="100/minute", total_concurrency=9, priority="urgency")
    how = "9 at once, 1.66667 a second for each customer, the highest urgency first"
    assert deploy.check(conn, limited) == deploy.deploy(conn, limited)[-1:] == [f"stage ship: no limits -> {how}"]
    assert conn.execute("SELECT partition, priority FROM outbox.jobs").fetchall() == [("a", 0)] * 2
    assert deploy.check(conn, limited) == []
    assert how in " ".join(Outbox(dsn)("status").out.split())
    (shown,) = Outbox(dsn)("status", "--json").json["limits"]
    assert (shown["partition"], shown["concurrency"], shown["ready"], shown["running"]) == ("customer", 9, 2, 0)
    with pytest.raises(
        NotDeployed,
        match=r"has limits in this database and none in this code.*If it is the older one, start the newer code",
    ):
        drain(plain, dsn)
    assert deploy.deploy(conn, plain) == [f"stage ship: {how} -> no limits"]
    assert conn.execute("SELECT partition, priority FROM outbox.jobs").fetchall() == [(None, None)] * 2
    with pytest.raises(NotDeployed, match="has limits in this code and none in this database"):
        drain(limited, dsn)
    drain(plain, dsn)
    assert all_done(conn, 2)


def test_a_worker_of_older_code_leaves_a_stage_that_is_limited_since_to_others(conn: Conn, dsn: str) -> None:
    began = Began()
    deployed(conn, older := orders(began))
    submit(conn, older, "a", 5)
    lane = Lane(older.stages["ship"], 10)
    worker = value(conn, "INSERT INTO outbox.workers (name, stages, lease) VALUES ('old', '{}', '1 h') RETURNING id")
    deploy.deploy(conn, newer := orders(began, concurrency=2))
    assert conn.execute(*claim.request(worker, [(lane, 10)], 0.0, careful=True)).fetchall() == []
    drain(newer, dsn)
    assert all_done(conn, 5)
    assert began.most[""] == 2


def test_a_higher_rate_counts_at_once(conn: Conn, dsn: str) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, rate="1/hour"))
    submit(conn, pipeline, "a", 5)
    with RunningWorker(pipeline, dsn):
        wait_for(lambda: len(began.start_times) == 1)
        deploy.deploy(conn, orders(began, rate="5/hour"))
        conn.execute("UPDATE outbox.limits SET rate = 50")
        wait_for(lambda: all_done(conn, 5))
    assert deploy.check(conn, pipeline) == ["stage ship: 50 a second -> 0.000277778 a second"]


@pytest.mark.parametrize("change", ["rate = 0", "rate = -1", "rate = 'NaN'", "rate = 1e9", "concurrency = 0"])
def test_limits_that_let_nothing_begin_are_refused_of_plain_sql_too(conn: Conn, change: str) -> None:
    deployed(conn, orders(lambda run: None, rate="1/second", concurrency=1))
    with pytest.raises(psycopg.errors.CheckViolation, match="limits_"):
        conn.execute(f"UPDATE outbox.limits SET {change}".encode())


def test_a_thousandth_of_a_job_a_second_begins_one(conn: Conn, dsn: str) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, rate="0.001/second"))
    submit(conn, pipeline, "a", 2)
    with RunningWorker(pipeline, dsn):
        wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.jobs") == 1)
        rest = value(conn, "SELECT extract(epoch FROM next_at)::float8 FROM outbox.limits") - began.start_times[0]
        assert 990 < rest < 1001
    assert len(began.start_times) == 1


@pytest.mark.parametrize("partition", [None, "customer"])
def test_a_clock_that_was_set_back_holds_up_one_attempt_and_no_more(
    conn: Conn, dsn: str, partition: str | None
) -> None:
    began = Began()
    pipeline = deployed(conn, orders(began, rate="100/second", partition=partition))
    submit(conn, pipeline, "a", 1)
    drain(pipeline, dsn)
    for table in ("limits", "partition_rates"):
        conn.execute(f"UPDATE outbox.{table} SET next_at = now() + interval '1 day'".encode())
    pipeline.submit_many(conn, [(f"b{n}", Order(customer="a")) for n in range(3)])
    drain(pipeline, dsn)
    assert all_done(conn, 4)


@pytest.mark.parametrize("partition", [None, "customer"])
def test_a_start_time_that_was_not_used_is_given_again(conn: Conn, partition: str | None) -> None:
    """Else a process that is too busy at its start time would cost a slow rate an hour."""
    pipeline = deployed(conn, orders(lambda run: None, rate="1/hour", partition=partition))
    submit(conn, pipeline, "a", 2)
    lane = Lane(pipeline.stages["ship"], 10)
    worker = value(conn, "INSERT INTO outbox.workers (name, stages, lease) VALUES ('w', '{}', '1 h') RETURNING id")

    def claimed() -> list[Job]:
        rows = conn.execute(*claim.request_limited(worker, [(lane, 10)], 0.0, careful=True)).fetchall()
        lane.waiting.clear()
        claim.receive_limited(worker, {("orders", "ship"): lane}, rows, ServerClock(), 0.0)
        return list(lane.waiting)

    (first,) = claimed()
    assert claimed() == []
    conn.execute(*commit.release([first]))
    conn.execute(*commit.return_start_times([first]))
    (again,) = claimed()
    assert again.start_time >= first.start_time
    conn.execute(*commit.return_start_times([first]))  # its answer was lost, and it is told once more
    assert claimed() == [], "this start time is another's by now"


def test_of_several_start_times_those_are_given_again_that_none_has_followed(conn: Conn) -> None:
    pipeline = deployed(conn, orders(lambda run: None, rate="100/second"))
    submit(conn, pipeline, "a", 8)
    lane = Lane(pipeline.stages["ship"], 10)
    worker = value(conn, "INSERT INTO outbox.workers (name, stages, lease) VALUES ('w', '{}', '1 h') RETURNING id")
    rows = conn.execute(*claim.request_limited(worker, [(lane, 8)], 0.0, careful=True)).fetchall()
    claim.receive_limited(worker, {("orders", "ship"): lane}, rows, ServerClock(), 0.0)
    jobs = list(lane.waiting)
    assert len(jobs) == 8
    ask = "SELECT extract(epoch FROM next_at)::float8 FROM outbox.limits"
    conn.execute(*commit.return_start_times([jobs[2], jobs[4]]))
    assert value(conn, ask) > jobs[7].start_time, "later ones may have begun"
    conn.execute(*commit.return_start_times([jobs[1], jobs[6], jobs[7]]))
    assert value(conn, ask) == pytest.approx(jobs[6].start_time, rel=0, abs=0.001)


def test_what_misses_its_start_time_is_given_back_and_costs_no_attempt(conn: Conn, dsn: str) -> None:
    attempts: list[int] = []

    async def ship(run: Run[Order]) -> None:
        attempts.append(run.attempt)
        if len(attempts) == 1:
            time.sleep(0.4)  # noqa: ASYNC251 - nothing of this process comes at its start time

    pipeline = deployed(conn, orders(ship, rate="20/second"))
    submit(conn, pipeline, "a", 12)
    drain(pipeline, dsn)
    assert all_done(conn, 12)
    assert attempts == [1] * 12


@pytest.mark.parametrize("sync", [False, True])
def test_a_rate_is_kept_by_handlers_that_wait_for_their_connection(
    conn: Conn, dsn: str, sync: bool, starts: list[tuple[float, float]]
) -> None:
    """The first connections take longer to come than an attempt may begin late: it is put off, not begun late."""
    began: list[float] = []

    async def ship(run: Run[Order]) -> None:
        began.append(run._job.start_time)

    def ship_in_thread(run: Run[Order]) -> None:
        began.append(run._job.start_time)

    pipeline = deployed(conn, orders(ship_in_thread if sync else ship, rate="20/second", transaction=True))
    submit(conn, pipeline, "a", 45)
    drain(pipeline, dsn)
    assert all_done(conn, 45)
    assert exact(began, 20)
    assert len(starts) == 45
    assert in_time(starts)


def test_start_times_of_partitions_are_forgotten_when_they_have_passed(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(lambda run: None, partition="customer", rate="1000/second"))
    submit(conn, pipeline, "a", 1)
    drain(pipeline, dsn)
    forget = statements.load("retention")["retention_rates"]
    conn.execute("UPDATE outbox.partition_rates SET next_at = now()")
    assert conn.execute(forget, {"days": 0, "limit": 10, **ALL}).fetchone() == (0,)
    conn.execute("UPDATE outbox.partition_rates SET next_at = now() - interval '2 minutes'")
    assert conn.execute(forget, {"days": 0, "limit": 10, **ALL}).fetchone() == (1,)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rate": "0/second"}, "outbox pause"),
        ({"rate": "-1/second"}, "is not a rate"),
        ({"rate": "14"}, "is not a rate"),
        ({"rate": 14}, "is not a rate"),
        ({"rate": "14/fortnight"}, "is not a rate"),
        ({"rate": "1e9/second"}, "is not a rate"),
        ({"rate": "0.000001/day"}, "not between"),
        ({"rate": "2000000/second"}, "not between"),
        ({"concurrency": 0}, "whole number"),
        ({"total_rate": "1/second"}, "partition="),
        ({"total_concurrency": 5}, "partition="),
        ({"partition": lambda d: d.customer or "x"}, "must lead to a field"),
        ({"partition": lambda d: f"{d.customer}"}, "must lead to a field"),
        ({"partition": lambda d: d}, "must lead to a field"),
        ({"partition": lambda d: d.customer.lower()}, "must lead to a field"),
        ({"partition": 5}, "must lead to a field"),
        ({"partition": ""}, "must lead to a field"),
        ({"partition": "custmer"}, "no field 'custmer'"),
        ({"priority": lambda d: d.urgent}, "no field 'urgent'"),
        ({"priority": lambda d: -d.urgency}, "must lead to a field"),
    ],
)
def test_limits_that_make_no_sense_are_refused_by_name(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError, match="stage ship") as caught:
        orders(lambda run: None, **wrong)
    assert words in str(caught.value)


def test_the_servers_clock_is_known_by_the_quickest_exchange() -> None:
    clock = ServerClock()
    clock.note(sent=10.0, asked=1010.2, answered=1010.3, received=10.5)  # on its way for 0.4 s
    assert clock.here(1010.25) == pytest.approx(10.25)
    clock.note(sent=11.0, asked=1011.11, answered=1012.11, received=12.02)  # for 0.02 s: the server is 0.1 s further
    assert clock.here(1020.0) == pytest.approx(19.9)
    clock.note(sent=13.0, asked=1013.5, answered=1013.6, received=14.0)  # slow again: says less
    assert clock.here(1020.0) == pytest.approx(19.9)
    clock.note(sent=15.0, asked=1014.0, answered=1014.1, received=15.5)  # it was set back by a second and more
    assert clock.here(1014.05) == pytest.approx(15.25)
    clock.note(sent=16.0, asked=1016.1, answered=1016.1, received=16.0)
    assert clock.here(1020.0) == pytest.approx(19.9)
    before = clock.lead
    clock.arrived(first=1020.0, received=20.2)
    assert clock.lead == pytest.approx(before + 0.3)
    clock.arrived(first=1021.0, received=20.5)
    assert before < clock.lead < before + 0.3


# Real processes. What they note is by the machine's monotonic clock, which they share, and by the database's.

APP = {"crowded": "crowded", "each": "each", "paced": "paced", "paced each": "paced_each"}


class Floor:
    """Three workers on one limited pipeline, and what their handlers have noted."""

    def __init__(self, conn: Conn, spawn: Callable[..., Process], notes: Path, name: str, **env: str) -> None:
        self.conn, self.notes, self.name = conn, notes, name
        self.pipeline = deployed(conn, limits_app.pipeline(name))
        self._spawn = spawn
        self._env = {"NOTES": str(notes), **env}
        self.submitted = 0
        self.workers = [self.worker() for _ in range(3)]
        registered = "SELECT count(*) FROM outbox.workers"
        wait_for(lambda: value(conn, registered) == 3)

    def worker(self) -> Process:
        return self._spawn("worker", "--app", f"apps.limits:{APP[self.name]}", env=self._env)

    def submit(self, *customers: str, count: int) -> None:
        numbers = range(self.submitted, self.submitted + count)
        items = [(f"{customer}{n}", {"customer": customer}) for n in numbers for customer in customers]
        self.pipeline.submit_many(self.conn, items)
        self.submitted += count

    def lines(self) -> list[tuple[float, int, str, str, str, float]]:
        lines = [line.split() for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
        return [
            (float(at), int(pid), what, entity, who, float(start_time))
            for at, pid, what, entity, who, start_time in lines
        ]

    def start_times(self, customer: str | None = None) -> list[float]:
        return [
            start_time for *_, what, _, who, start_time in self.lines() if what == "begins" and customer in (None, who)
        ]

    def pids(self) -> set[int]:
        return {pid for _, pid, *_ in self.lines()}

    def last_to_note(self) -> Process:
        pid = self.lines()[-1][1]
        return next(worker for worker in self.workers if worker.popen.pid == pid)

    def most_at_once(self, killed: dict[int, float], customer: str | None = None) -> int:
        """How many were at work at once; those of a process that was killed, until then."""
        changes = [
            (at, 1 if what == "begins" else -1, pid, entity)
            for at, pid, what, entity, who, _ in self.lines()
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
        wait_for(lambda: all_done(self.conn, count), what=f"{count} done")


@pytest.fixture
def floor(conn: Conn, spawn: Callable[..., Process], tmp_path: Path) -> Callable[..., Floor]:
    return lambda name, **env: Floor(conn, spawn, tmp_path / "notes", name, **env)


@pytest.mark.parametrize(("name", "most"), [("crowded", 5), ("each", 6)])
def test_so_many_are_at_work_over_all_processes_of_which_some_are_killed(
    floor: Callable[..., Floor], name: str, most: int
) -> None:
    there = floor(name)
    killed: dict[int, float] = {}
    for _ in range(3):  # each with work of its own, so that there is some whenever it is killed
        there.submit("a", "b", "c", "d", count=14)
        so_far = len(there.lines())
        wait_for(lambda so_far=so_far: len(there.lines()) > so_far + 20)
        victim = there.last_to_note()
        victim.freeze()
        killed[victim.popen.pid] = time.monotonic()  # when it does nothing more, and no other worker has its jobs yet
        victim.kill9()
        there.workers = [worker for worker in there.workers if worker is not victim] + [there.worker()]
    there.done(3 * 56)
    for number, customer in enumerate("abcd", start=1):  # two of one alone: a claim takes both
        there.submit(customer, count=2)
        there.done(3 * 56 + 2 * number)
    assert there.most_at_once(killed) == most
    if name == "each":
        assert {customer: there.most_at_once(killed, customer) for customer in "abcd"} == dict.fromkeys("abcd", 2)
    assert len(there.pids()) > 3


def test_a_rate_over_three_processes_is_exact(floor: Callable[..., Floor]) -> None:
    there = floor("paced")
    there.submit("a", count=70)
    wait_for(there.lines)
    first = there.last_to_note()
    first.freeze()
    wait_for(lambda: len(there.pids()) > 1, what="another one begins some")
    first.send(signal.SIGCONT)
    there.done(70)
    assert exact(there.start_times(), 20)
    assert len(there.pids()) > 1


def test_each_partition_has_its_rate_and_all_have_theirs(floor: Callable[..., Floor]) -> None:
    there = floor("paced each")
    there.submit("a", "b", "c", "d", count=12)
    there.done(48)
    assert exact(there.start_times(), 12)
    assert all(exact(there.start_times(customer), 5) for customer in "abcd")
