"""Schedules: each tick runs once, on any worker, whatever dies on the way."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import re
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import Post, deployed, drain, value
from kit.pooler import way
from kit.servers import DEADLINE, Process, wait_for
from outbox import DefinitionError, Pipeline, Tick, Worker
from outbox.definition import deploy, schedule

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
PARIS = ZoneInfo("Europe/Paris")
YEARLY = "0 0 1 1 *"  # so that no clock strikes while a test runs


def clock(function: Any = None, cron: Any = YEARLY, **options: Any) -> Pipeline[Post]:
    """A pipeline with one schedule, `look`, that submits a workflow named by its tick."""

    async def look(tick: Tick) -> None:
        await pipeline.submit(tick.connection, f"{tick.at.astimezone(UTC):%Y}", Post())

    pipeline: Pipeline[Post] = Pipeline("clock", data=Post, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to="DONE")(lambda run: None)
    pipeline.every(cron, name="look", **options)(function or look)
    return pipeline


def years_due(conn: Conn, years: int = 1) -> datetime:
    """Set a yearly schedule back: so many of its ticks are due. Returns the latest one, by the database's time."""
    latest = datetime(value(conn, "SELECT now()").astimezone(UTC).year, 1, 1, tzinfo=UTC)
    conn.execute("UPDATE outbox.schedules SET next_at = %s", (latest.replace(year=latest.year - years + 1),))
    return latest


def due(conn: Conn, ago: timedelta = timedelta(0)) -> datetime:
    """Set the schedule back: its next tick was so long ago. Returns the latest tick, by the database's time."""
    now = value(conn, "SELECT now()").replace(second=0, microsecond=0)
    latest: datetime = now - timedelta(minutes=now.minute % 5)
    conn.execute("UPDATE outbox.schedules SET next_at = %s", (latest - ago,))
    return latest


def submitted(conn: Conn) -> list[str]:
    return [
        entity for (entity,) in conn.execute("SELECT entity_id FROM outbox.workflow_states ORDER BY created_at, id")
    ]


def test_nothing_runs_before_its_time(conn: Conn, dsn: str) -> None:
    before = value(conn, "SELECT now()")
    pipeline = deployed(conn, clock(cron="*/5 * * * *"))
    next_at = value(conn, "SELECT next_at FROM outbox.schedules")
    assert before < next_at <= value(conn, "SELECT now()") + timedelta(minutes=5)
    assert next_at.minute % 5 == 0
    conn.execute("UPDATE outbox.schedules SET next_at = now() + interval '1 hour'")  # whatever the clock says just now
    drain(pipeline, dsn)
    assert submitted(conn) == []


@pytest.mark.parametrize(("missed", "count"), [("skip", 1), ("catch up", 4)])
def test_ticks_that_were_missed_are_skipped_or_caught_up(conn: Conn, dsn: str, missed: str, count: int) -> None:
    pipeline = deployed(conn, clock(missed=missed))
    latest = years_due(conn, 4)
    drain(pipeline, dsn)
    assert submitted(conn) == [f"{latest.year - n}" for n in reversed(range(count))]
    assert value(conn, "SELECT last_at FROM outbox.schedules") == latest
    assert value(conn, "SELECT next_at > now() FROM outbox.schedules")
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'") == count
    actors = "SELECT DISTINCT actor FROM outbox.state_changes WHERE from_status IS NULL"
    assert value(conn, actors) == "schedule clock.look"


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_tick_that_fails_leaves_nothing_and_is_tried_again(conn: Conn, dsn: str, colour: str) -> None:
    keys: list[str] = []

    def look(tick: Tick) -> None:
        keys.append(tick.idempotency_key)
        pipeline.submit(tick.connection, f"e{len(keys)}", Post())
        if len(keys) == 1:
            raise ValueError("not yet")

    async def look_async(tick: Tick) -> None:
        keys.append(tick.idempotency_key)
        await pipeline.submit(tick.connection, f"e{len(keys)}", Post())
        if len(keys) == 1:
            raise ValueError("not yet")

    pipeline = deployed(conn, clock(look if colour == "sync" else look_async))
    years_due(conn)
    drain(pipeline, dsn)
    assert submitted(conn) == []
    (failed,) = Outbox(dsn)("schedules", "--json").json
    assert (failed["attempts"], failed["error"].split(" (")[0]) == (1, "ValueError: not yet")
    conn.execute("UPDATE outbox.schedules SET retry_at = now()")
    drain(pipeline, dsn)
    assert submitted(conn) == ["e2"]
    assert keys[0] == keys[1]
    assert conn.execute("SELECT attempts, error, retry_at FROM outbox.schedules").fetchone() == (0, None, None)


@pytest.mark.parametrize(("missed", "later"), [("skip", True), ("catch up", False)])
def test_a_retry_is_of_the_latest_tick_with_skip_and_of_the_same_one_with_catch_up(missed: str, later: bool) -> None:
    """A tick that has failed leaves the schedule at its time; docs/time.md says what that means for its key."""
    hourly = schedule.check("p", "n", "0 * * * *", "UTC", missed, 60, print)
    due = datetime(2026, 1, 1, 12, tzinfo=UTC)
    first, again = hourly.tick(due, due + timedelta(minutes=1)), hourly.tick(due, due + timedelta(minutes=61))
    assert first == due
    assert again == (due + timedelta(hours=1) if later else due)
    keys = {Tick(hourly.label, at, None).idempotency_key for at in (first, again)}
    assert len(keys) == (2 if later else 1)


def test_a_function_that_ends_the_tick_by_itself_is_told(conn: Conn, dsn: str) -> None:
    async def look(tick: Tick) -> None:
        await tick.connection.execute("UPDATE outbox.schedules SET next_at = next_at - interval '5 minutes'")

    pipeline = deployed(conn, clock(look))
    years_due(conn)
    drain(pipeline, dsn)
    assert "ended the transaction" in value(conn, "SELECT error FROM outbox.schedules")


def test_a_function_that_takes_too_long_is_ended(conn: Conn, dsn: str) -> None:
    async def look(tick: Tick) -> None:
        await tick.connection.execute("SELECT pg_sleep(60)")

    pipeline = deployed(conn, clock(look, timeout=0.2))
    years_due(conn)
    drain(pipeline, dsn)
    told = value(conn, "SELECT error FROM outbox.schedules")
    assert re.fullmatch(r"TimeoutError: not done within 0.2 s \(test_scheduler.py:\d+ in \w+\)", told), told


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_whatever_a_function_raises_is_kept_and_ends_neither_the_worker_nor_another_schedule(
    conn: Conn, dsn: str, colour: str
) -> None:
    raised = [
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        StopIteration(),
        MemoryError(),
    ]
    calls: list[int] = []
    pipeline: Pipeline[Post] = Pipeline("clock", data=Post, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to="DONE")(lambda run: None)

    def add(number: int) -> None:
        def look(tick: Tick) -> None:
            calls.append(number)
            raise raised[number]

        async def look_async(tick: Tick) -> None:
            look(tick)

        pipeline.every(YEARLY, name=f"look{number}")(look if colour == "sync" else look_async)

    for number in range(len(raised)):
        add(number)
    pipeline.every(YEARLY, name="good")(lambda tick: calls.append(99))
    deployed(conn, pipeline)
    years_due(conn)
    worker = Worker(pipeline, **way(dsn))

    async def main() -> None:
        running = asyncio.create_task(worker.run())
        failed = "SELECT count(*) FROM outbox.schedules WHERE error IS NOT NULL AND retry_at > now() AND attempts = 1"
        await asyncio.to_thread(wait_for, lambda: value(conn, failed) == len(raised))
        await asyncio.to_thread(wait_for, lambda: value(conn, "SELECT count(last_at) FROM outbox.schedules") == 1)
        worker.stop()
        await running

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert sorted(calls) == [*range(len(raised)), 99], "each once, and later again"
    errors = dict(conn.execute("SELECT schedule, error FROM outbox.schedules WHERE error IS NOT NULL").fetchall())
    for number, error in enumerate(raised):
        assert type(error).__name__ in errors[f"look{number}"]


def test_a_plain_function_has_the_context_variables_of_its_worker(conn: Conn, dsn: str) -> None:
    seen: list[int] = []

    def look(tick: Tick) -> None:
        seen.append(decimal.getcontext().prec)

    pipeline = deployed(conn, clock(look))
    years_due(conn)

    def in_context() -> None:
        decimal.setcontext(decimal.Context(prec=50))
        drain(pipeline, dsn)

    contextvars.copy_context().run(in_context)
    assert seen == [50]


WORKER = ["worker", "--app", "apps.schedule:pipeline"]
AT_THE_GATE = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'idle in transaction' AND application_name = 'outbox schedule'
"""


@pytest.fixture
def ticks(conn: Conn) -> Conn:
    """The application of these processes; its schedule notes each run in a table of its own, without any key."""
    from apps.schedule import pipeline

    deployed(conn, pipeline)
    conn.execute("CREATE TABLE outbox.ticks (at timestamptz, pid integer)")
    return conn


def test_any_number_of_workers_run_each_tick_once(ticks: Conn, spawn: Spawn) -> None:
    due(ticks, timedelta(hours=8))
    for _ in range(3):
        spawn(*WORKER)
    wait_for(lambda: value(ticks, "SELECT next_at > now() FROM outbox.schedules"), what="all ticks are caught up")
    ran = ticks.execute("SELECT count(*), count(DISTINCT at) FROM outbox.ticks").fetchone()
    assert ran in ((97, 97), (98, 98)), "one run a tick; one more if the clock has struck meanwhile"


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_a_worker_that_is_away_does_not_keep_the_tick(ticks: Conn, spawn: Spawn, how: str) -> None:
    """It is in the function, in its transaction; the server ends that, and another worker runs the tick."""
    ticks.execute("CREATE TABLE outbox.gate (n integer)")
    latest = due(ticks)
    first = spawn(*WORKER)
    wait_for(lambda: value(ticks, AT_THE_GATE) == 1, what="it waits at the gate")
    (first.freeze if how == "frozen" else first.kill9)()
    ticks.execute("INSERT INTO outbox.gate VALUES (1)")
    second = spawn(*WORKER)
    ran = "SELECT count(*) FROM outbox.ticks WHERE at = %s"  # the clock may strike again meanwhile
    wait_for(lambda: value(ticks, ran, latest) == 1, what="the other one runs it")
    if how == "frozen":
        first.send(signal.SIGCONT)
        first.send(signal.SIGTERM)
        assert first.wait() == 0
    second.send(signal.SIGTERM)
    assert second.wait() == 0
    assert value(ticks, ran, latest) == 1
    assert value(ticks, "SELECT count(*) = count(DISTINCT at) FROM outbox.ticks")


# Definitions.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cron": "61 * * * *"}, "is not a cron expression"),
        ({"cron": "every minute"}, "is not a cron expression"),
        ({"cron": 5}, "is not a cron expression"),
        ({"cron": "0 0 30 2 *"}, "is not a cron expression|never comes"),
        ({"timezone": "Europe/Atlantis"}, "is unknown"),
        ({"timezone": "../../etc/passwd"}, "is unknown"),
        ({"missed": "maybe"}, "neither"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_a_schedule_that_can_not_be_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        clock(**options)


def test_two_schedules_of_one_name_are_refused() -> None:
    pipeline = clock()
    with pytest.raises(DefinitionError, match="two schedules"):
        pipeline.every("* * * * *", name="look")(lambda tick: None)


@pytest.mark.parametrize(
    ("before", "ticks"),
    [
        # In spring there is no half past two: it runs when the clocks have changed. In autumn there are two: it runs once.
        (datetime(2026, 3, 28, 12, tzinfo=PARIS), ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]),
        (datetime(2026, 10, 24, 12, tzinfo=PARIS), ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]),
    ],
)
def test_daylight_saving_time_neither_skips_nor_repeats_a_night(before: datetime, ticks: list[str]) -> None:
    nightly = schedule.check("p", "n", "30 2 * * *", "Europe/Paris", "skip", 60, print)
    found = []
    for _ in ticks:
        before = nightly.after(before)
        found.append(before.isoformat())
    assert found == ticks


def test_deploy_keeps_the_place_of_what_is_unchanged(conn: Conn) -> None:
    deployed(conn, clock(cron="*/5 * * * *"))
    due(conn, timedelta(minutes=15))
    before = value(conn, "SELECT next_at FROM outbox.schedules")
    assert deploy.deploy(conn, clock(cron="*/5 * * * *")) == []
    assert deploy.deploy(conn, clock(cron="*/5 * * * *", missed="catch up")) == [
        "schedule look: */5 * * * * in UTC, with each tick that was missed"
    ]
    assert value(conn, "SELECT next_at FROM outbox.schedules") == before
    deploy.deploy(conn, clock(cron="0 0 * * *"))
    assert value(conn, "SELECT next_at > now() FROM outbox.schedules")
    none: Pipeline[Post] = Pipeline("clock", data=Post, initial="NEW", final={"DONE"})
    none.stage("work", on="NEW", to="DONE")(lambda run: None)
    assert deploy.deploy(conn, none) == ["schedule look is removed"]
    assert value(conn, "SELECT count(*) FROM outbox.schedules") == 0


@pytest.mark.parametrize("old", [{"cron": "0 0 1 2 *"}, {"timezone": "Europe/Paris"}, {"missed": "catch up"}])
def test_an_old_worker_leaves_the_ticks_of_a_new_schedule_to_new_workers(
    conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture, old: dict[str, Any]
) -> None:
    """Whoever takes a tick says when the next one comes: it must know the time as it is deployed."""
    before, after = clock(**old), clock()
    deployed(conn, before)
    deployed(conn, after)
    latest = years_due(conn)
    drain(before, dsn)
    assert submitted(conn) == []
    assert "clock.look is deployed with another time than this worker knows" in caplog.text
    drain(after, dsn)
    assert submitted(conn) == [f"{latest.year}"]


def test_the_command_lists_them(conn: Conn, dsn: str) -> None:
    outbox = Outbox(dsn)
    assert outbox("schedules").out == "no pipeline has a schedule\n"
    deployed(conn, clock(cron="*/5 * * * *", timezone="Europe/Paris"))
    (row,) = outbox("schedules", "--json").json
    assert (row["schedule"], row["cron"], row["timezone"], row["attempts"]) == (
        "look",
        "*/5 * * * *",
        "Europe/Paris",
        0,
    )
    assert all(text in outbox("schedules").out for text in ("clock", "look", "skip", "in "))
