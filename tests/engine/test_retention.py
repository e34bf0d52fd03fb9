"""Retention: off unless asked for, in batches, and never of what is still on its way."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from apps.cli import posts
from kit.commands import Outbox
from kit.pipelines import Post, deployed, drain, status_of, value
from kit.servers import DEADLINE, wait_for
from kit.waits import Task, families
from outbox import DefinitionError, Run, WaitForChildren
from outbox.engine import maintenance
from outbox.engine.inflight import InFlight
from outbox.engine.lane import Lanes
from outbox.engine.maintenance import Maintenance
from outbox.engine.retention import BATCH, Retention, steps

Conn = psycopg.Connection[Any]


@pytest.fixture
def shop(conn: Conn, dsn: str) -> Conn:
    """Two posts of each: completed, waiting for review, dead, new."""
    deployed(conn, posts)
    for content in ("calm", "risky", "rejected"):
        posts.submit_many(conn, ((f"{content}{n}", Post(content=content)) for n in range(2)))
    drain(posts, dsn)
    posts.submit_many(conn, ((f"new{n}", Post()) for n in range(2)))
    return conn


@pytest.fixture
def age(admin_dsn: str) -> Callable[[str, float], None]:
    """Make the workflows whose entities are like a pattern, and all that belongs to them, so many days older."""

    def age(pattern: str, days: float) -> None:
        ids = "(SELECT id FROM outbox.workflow_states WHERE entity_id LIKE %(pattern)s)"
        older = "- make_interval(secs => %(days)s::float8 * 86400)"
        with psycopg.connect(admin_dsn) as admin:
            admin.execute("SET session_replication_role = replica")  # the triggers keep the clock and the history
            for statement in (
                f"UPDATE outbox.workflow_states SET updated_at = updated_at {older} WHERE id IN {ids}",
                f"UPDATE outbox.state_changes SET at = at {older} WHERE workflow_id IN {ids}",
                f"UPDATE outbox.dead_jobs SET died_at = died_at {older} WHERE workflow_id IN {ids}",
            ):
                admin.execute(statement.encode(), {"pattern": pattern, "days": days})

    return age


@pytest.fixture
def retain(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run one turn of a worker's maintenance in which retention is due."""
    monkeypatch.setattr(maintenance, "RETAIN_EVERY", 0.0)

    def retain(**days: float | None) -> None:
        async def turn() -> None:
            made = Maintenance(dsn, InFlight(Lanes()), Retention(**days), lease=30)
            await made.tick()
            await made.close()

        asyncio.run(turn())

    return retain


Age = Callable[[str, float], None]
Retain = Callable[..., None]


def entities(conn: Conn) -> list[str]:
    return [row[0] for row in conn.execute("SELECT entity_id FROM outbox.workflow_states ORDER BY 1").fetchall()]


def history(conn: Conn) -> int:
    return int(value(conn, "SELECT count(*) FROM outbox.state_changes"))


def check_overview(conn: Conn) -> None:
    """The overview, which counts by differences, says what counting would."""
    told = conn.execute("SELECT status, workflows, ready, dead FROM outbox.overview ORDER BY 1").fetchall()
    counted = conn.execute(
        "SELECT r.status, count(w.id), count(j.workflow_id), count(d.workflow_id) FROM outbox.routes r "
        "LEFT JOIN outbox.workflow_states w ON w.pipeline = r.pipeline AND w.current_status = r.status "
        "LEFT JOIN outbox.jobs j ON j.workflow_id = w.id LEFT JOIN outbox.dead_jobs d ON d.workflow_id = w.id "
        "GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert told == counted


ERRORS = "SELECT count(*) FROM outbox.dead_jobs WHERE error <> 'dropped by retention'"


def test_by_default_only_errors_of_dead_jobs_go_and_those_after_ninety_days(
    shop: Conn, age: Age, retain: Retain
) -> None:
    assert Retention() == Retention(workflows=None, history=None, dead_jobs=90, inbox=90)
    before, changes = entities(shop), history(shop)
    age("%", 89)
    retain()
    assert value(shop, ERRORS) == 2
    age("%", 10_000)
    retain()
    assert (entities(shop), history(shop)) == (before, changes)
    assert value(shop, ERRORS) == 0


def test_none_keeps_everything_for_ever(shop: Conn, age: Age, retain: Retain) -> None:
    before, changes = entities(shop), history(shop)
    age("%", 100_000)
    retain(dead_jobs=None)
    assert (entities(shop), history(shop)) == (before, changes)
    assert value(shop, ERRORS) == 2


def test_finished_workflows_go_with_their_history_and_unfinished_ones_stay(
    shop: Conn, age: Age, retain: Retain
) -> None:
    age("%", 31)
    age("calm1", -2)  # 29 days
    changes = history(shop)
    gone = value(shop, "SELECT id FROM outbox.workflow_states WHERE entity_id = 'calm0'")
    retain(workflows=30)
    assert entities(shop) == ["calm1", "new0", "new1", "rejected0", "rejected1", "risky0", "risky1"]
    assert value(shop, "SELECT count(*) FROM outbox.state_changes WHERE workflow_id = %s", gone) == 0
    assert history(shop) == changes - 4
    assert value(shop, "SELECT count(*) FROM outbox.jobs") == 2
    assert value(shop, "SELECT count(*) FROM outbox.dead_jobs") == 2
    check_overview(shop)
    assert posts.submit(shop, "calm0", Post()).created, "the entity may come again"


def test_old_history_goes_of_open_workflows_too_and_the_workflows_stay(shop: Conn, age: Age, retain: Retain) -> None:
    before, changes = entities(shop), history(shop)
    age("risky0", 31)
    age("risky1", 29)
    old = value(shop, "SELECT id FROM outbox.workflow_states WHERE entity_id = 'risky0'")
    retain(history=30)
    assert entities(shop) == before
    assert value(shop, "SELECT count(*) FROM outbox.state_changes WHERE workflow_id = %s", old) == 0
    assert history(shop) == changes - 3
    check_overview(shop)


def test_old_errors_of_dead_jobs_go_and_the_jobs_are_still_seen_and_can_be_retried(
    shop: Conn, age: Age, retain: Retain, outbox: Outbox
) -> None:
    age("rejected0", 31)
    age("rejected1", 29)
    retain(dead_jobs=30)
    errors = {row["entity_id"]: row["error"] for row in outbox("dead", "--json").json}
    assert errors.pop("rejected0") == "dropped by retention"
    assert list(errors) == ["rejected1"]
    check_overview(shop)
    outbox("retry", "rejected0")
    assert value(shop, "SELECT count(*) FROM outbox.jobs WHERE stage = 'decide'") == 1
    check_overview(shop)


def move(conn: Conn, pattern: str, status: str) -> None:
    conn.execute("UPDATE outbox.workflow_states SET current_status = %s WHERE entity_id LIKE %s", [status, pattern])


def test_children_that_have_ended_stay_until_their_parent_has(conn: Conn, dsn: str, retain: Retain) -> None:
    """So what failed is known when the last one ends, and the parent can read what they have found."""

    def plan(run: Run[Task]) -> None:
        for n in range(3):
            run.spawn(tasks, f"t{n}", Task(n=n))

    parents, tasks = families(plan, WaitForChildren(to="MERGED", on_failure="FAILED", failed={"BAD"}))
    deployed(conn, tasks)
    for entity, ends, status in (("well", ["DONE"] * 3, "MERGED"), ("badly", ["BAD", "DONE", "DONE"], "FAILED")):
        deployed(conn, parents).submit(conn, entity, Task())
        drain(parents, dsn)
        for n, end in enumerate(ends):
            retain(workflows=0)
            move(conn, f"t{n}", end)
        assert status_of(conn, entity) == status
        if status == "MERGED":
            retain(workflows=0)
            assert len(entities(conn)) == 4, "the parent has not read them yet"
        drain(parents, dsn)
        retain(workflows=0)
        assert entities(conn) == []


def test_a_parent_that_ended_first_stays_until_its_children_are_cancelled(conn: Conn, dsn: str) -> None:
    parents, tasks = families(
        lambda run: run.spawn(tasks, "t", Task(), cancel="CANCELLED"), WaitForChildren(to="MERGED")
    )
    deployed(conn, tasks)
    deployed(conn, parents).submit(conn, "p", Task())
    drain(parents, dsn)
    move(conn, "p", "CANCELLED")
    kept = Retention(workflows=0)

    async def turn() -> None:
        made = Maintenance(dsn, InFlight(Lanes()), kept, lease=30)
        for _, step in steps(made._link, made._apart, kept):
            await step
        await made.close()

    asyncio.run(turn())
    drain(parents, dsn)
    assert status_of(conn, "t") == "CANCELLED"
    asyncio.run(turn())
    assert "p" not in entities(conn)


def test_a_century_is_an_age_too(shop: Conn, age: Age, retain: Retain) -> None:
    age("calm0", 40_000)
    retain(workflows=36_500, history=36_500, dead_jobs=36_500)
    assert "calm0" not in entities(shop)
    assert "calm1" in entities(shop)


def test_more_than_a_batch_goes_in_one_turn(conn: Conn, dsn: str, age: Age, retain: Retain) -> None:
    deployed(conn, posts)
    many = 2 * BATCH + 500
    posts.submit_many(conn, ((f"e{n}", Post()) for n in range(many)))
    posts.submit(conn, "young", Post())
    drain(posts, dsn)
    age("e%", 31)
    retain(workflows=30)
    assert entities(conn) == ["young"]
    assert history(conn) == 4
    check_overview(conn)


def test_what_others_have_locked_is_left_for_the_next_turn(
    shop: Conn, age: Age, retain: Retain, connect: Callable[..., Conn]
) -> None:
    age("%", 31)
    holder = connect(autocommit=False)
    holder.execute("SELECT FROM outbox.workflow_states WHERE entity_id = 'calm0' FOR UPDATE")
    retain(workflows=30)
    assert [entity for entity in entities(shop) if "calm" in entity] == ["calm0"]
    holder.rollback()
    retain(workflows=30)
    assert [entity for entity in entities(shop) if "calm" in entity] == []
    check_overview(shop)


def test_history_is_closed_again_after_retention(shop: Conn, dsn: str) -> None:
    async def turn() -> str:
        made = Maintenance(dsn, InFlight(Lanes()), Retention(history=0), lease=30)
        for _, step in steps(made._link, made._apart, made._retention):
            await step
        try:
            await made._link.execute(b"DELETE FROM outbox.state_changes", {})
        except psycopg.Error as error:
            return str(error.sqlstate)
        finally:
            await made.close()
        return "deleted"

    posts.submit(shop, "after", Post())
    assert asyncio.run(turn()) == "OB005"


def test_a_worker_does_it_by_its_options_and_says_so(shop: Conn, dsn: str, age: Age, tmp_path: Path) -> None:
    age("%", 31)
    start = (
        "from outbox.engine import maintenance; maintenance.RETAIN_EVERY = 0.01; from outbox.cli import main; main()"
    )
    options = ["--keep-workflows", "30", "--keep-history", "30", "--keep-dead", "30", "--stage", "act", "--log", "json"]
    said = tmp_path / "log"
    with (
        said.open("wb") as log,
        Outbox(dsn).process("worker", "--app", "apps.cli:posts", *options, program=["-c", start], stderr=log) as worker,
    ):
        for words in ("retention workflows: 2 ", "retention history: ", "retention dead jobs: 2 "):
            wait_for(lambda words=words: words in said.read_text(), what=words)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(DEADLINE) == 0
    assert len(entities(shop)) == 6
    assert history(shop) == 0
    assert value(shop, ERRORS) == 0


@pytest.mark.parametrize("days", [-1, math.nan, math.inf, 1e300, "30", -0.001])
@pytest.mark.parametrize("what", ["workflows", "history", "dead_jobs", "inbox"])
def test_an_age_that_is_none_is_refused(what: str, days: Any) -> None:
    with pytest.raises(DefinitionError, match=f"Retention {what}: .* is not a number of days"):
        Retention(**{what: days})


def write(conn: Conn, days: float) -> None:
    """Write a message that is so many days old."""
    conn.execute(
        "INSERT INTO outbox.messages (topic, created_at) VALUES ('t', now() - make_interval(secs => %s::float8 * 86400))",
        [days],
    )


def messages(conn: Conn) -> int:
    return int(value(conn, "SELECT count(*) FROM outbox.messages"))


def test_messages_without_a_relay_are_kept_unless_asked_for(conn: Conn, retain: Retain) -> None:
    write(conn, 1000)
    for _ in range(3):
        retain()
    assert messages(conn) == 1


def test_messages_without_a_relay_go_by_age_however_few_they_are(conn: Conn, retain: Retain) -> None:
    for days in (9, 8, 6):
        write(conn, days)
    retain(messages=7)
    write(conn, 0)
    retain(messages=7)
    assert messages(conn) == 4, "a child goes as a whole: its youngest decides"
    conn.execute("UPDATE outbox.messages SET created_at = created_at - interval '2 days'")
    retain(messages=7)
    assert messages(conn) == 1
    assert value(conn, "SELECT count(*) FROM outbox.messages_1") == 1, "the ring has turned"


def test_where_a_relay_is_messages_go_when_it_has_passed_them_and_never_by_age(conn: Conn, retain: Retain) -> None:
    conn.execute(
        "INSERT INTO outbox.relays (name, cluster, window_start) "
        "VALUES ('away', (SELECT c.system_identifier::text FROM pg_control_system() AS c), '3:3:')"
    )
    write(conn, 1000)
    for _ in range(3):
        retain(messages=7)
    assert messages(conn) == 1
    conn.execute("UPDATE outbox.relays SET window_start = pg_current_snapshot()")
    retain(messages=7)
    assert messages(conn) == 0


def test_a_worker_deletes_old_messages_by_its_option(conn: Conn, dsn: str) -> None:
    deployed(conn, posts)
    write(conn, 8)
    start = (
        "from outbox.engine import maintenance; maintenance.RETAIN_EVERY = 0.01; from outbox.cli import main; main()"
    )
    options = ["--app", "apps.cli:posts", "--keep-messages", "7"]
    with Outbox(dsn).process("worker", *options, program=["-c", start]) as worker:
        wait_for(lambda: messages(conn) == 0, what="the old message goes")
        worker.send_signal(signal.SIGTERM)
        assert worker.done().code == 0
