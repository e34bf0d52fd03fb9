"""One bad row harms no other: what maintenance changes in batches, it changes together, and then row by row."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, one_stage, status_of, value
from outbox import Backoff, Pipeline, Retry, Run, WaitForApproval, WaitForChildren
from outbox.database import migrations
from outbox.engine.inflight import InFlight
from outbox.engine.lane import Lanes
from outbox.engine.maintenance import Maintenance
from outbox.engine.retention import Retention

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]
OTHERS = 4


def tick(dsn: str, *, times: int = 1, **kept: Any) -> None:
    """Lets one worker's maintenance tick."""

    async def go() -> None:
        maintenance = Maintenance(dsn, InFlight(Lanes()), Retention(**kept), lease=30)
        for _ in range(times):
            maintenance._retain_at = maintenance._fold_at = 0.0
            await maintenance.tick(everything=True)
        await maintenance.close()

    asyncio.run(go())


def refuse(conn: Conn, table: str, when: str, condition: str, entity: str = "bad") -> None:
    """Has a trigger of the user's refuse one entity's row."""
    conn.execute(
        f"""
        CREATE FUNCTION outbox.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF {condition} AND (SELECT entity_id FROM outbox.workflow_states WHERE id = OLD.{
            "id" if table == "workflow_states" else "workflow_id"
        }) = '{entity}' THEN
                RAISE EXCEPTION 'refused by the user''s trigger';
            END IF;
            RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END $$;
        CREATE TRIGGER refuse BEFORE {when} ON outbox.{table} FOR EACH ROW EXECUTE FUNCTION outbox.refuse();
    """.encode()
    )


def names() -> list[str]:
    return ["bad", *(f"e{n}" for n in range(OTHERS))]


def timed(conn: Conn) -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline("p", initial="A", final={"EXPIRED"})
    pipeline.deadline("A", seconds=0.01, to="EXPIRED")
    deployed(conn, pipeline)
    for name in names():
        pipeline.submit(conn, name, {})
    conn.execute("UPDATE outbox.jobs SET deadline = now() - interval '1 hour'")
    return pipeline


def moved(conn: Conn, status: str) -> list[str]:
    rows = conn.execute(
        "SELECT entity_id FROM outbox.workflow_states WHERE current_status = %s ORDER BY 1", [status]
    ).fetchall()
    return [row[0] for row in rows]


def test_a_deadline_that_is_refused_keeps_no_other_from_firing(
    conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    timed(conn)
    refuse(conn, "workflow_states", "UPDATE", "NEW.current_status = 'EXPIRED'")
    caplog.set_level(logging.ERROR, "outbox.maintenance")
    tick(dsn, times=3)
    assert moved(conn, "EXPIRED") == names()[1:]
    assert len([line for line in caplog.messages if "refused by the user" in line]) == 1, "once in a while"


def test_what_a_deadline_waits_for_longer_keeps_no_other_from_firing(conn: Conn, dsn: str, connect: Connect) -> None:
    """A trigger of the user's needs a row that another session holds."""
    timed(conn)
    conn.execute("CREATE TABLE outbox.theirs AS SELECT 1 AS n")
    conn.execute("""
        CREATE FUNCTION outbox.theirs() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.entity_id = 'bad' THEN UPDATE outbox.theirs SET n = n + 1; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER theirs BEFORE UPDATE ON outbox.workflow_states FOR EACH ROW EXECUTE FUNCTION outbox.theirs()""")
    holder = connect(autocommit=False)
    holder.execute("UPDATE outbox.theirs SET n = 2")
    tick(dsn)
    assert moved(conn, "EXPIRED") == names()[1:]


def test_a_deadline_that_is_refused_keeps_no_dead_workers_job_from_being_freed(conn: Conn, dsn: str) -> None:
    timed(conn)
    work = deployed(conn, one_stage_of("q"))
    work.submit(conn, "lost", Post())
    conn.execute("UPDATE outbox.jobs SET owner = 999, claimed_at = now(), attempt = 1 WHERE stage IS NOT NULL")
    refuse(conn, "workflow_states", "UPDATE", "NEW.current_status = 'EXPIRED'")
    tick(dsn)
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE owner IS NOT NULL") == 0


def one_stage_of(name: str) -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline(name, data=Post, initial="NEW", final={"DONE"})

    @pipeline.stage("work", on="NEW", to="DONE", retry=Backoff(first=0.01, attempts=1))
    async def work(run: Run[Post]) -> None: ...

    return pipeline


@pytest.mark.parametrize("last", [False, True])
def test_a_lost_job_that_is_refused_keeps_no_other_from_being_freed(conn: Conn, dsn: str, last: bool) -> None:
    pipeline = deployed(conn, one_stage_of("q") if last else one_stage(lambda run: None))
    for name in names():
        pipeline.submit(conn, name, Post())
    conn.execute("UPDATE outbox.jobs SET owner = 999, claimed_at = now(), attempt = 1")
    refuse(conn, "jobs", "UPDATE OR DELETE", "OLD.owner = 999")
    tick(dsn)
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE owner IS NOT NULL") == 1
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == (OTHERS if last else 0)


def test_a_lost_job_beside_a_dead_one_takes_its_place(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, one_stage_of("q"))
    for name in names():
        pipeline.submit(conn, name, Post())
    conn.execute("""INSERT INTO outbox.dead_jobs (workflow_id, pipeline, entity_id, stage, status, entered, attempts, error)
        SELECT id, pipeline, entity_id, 'work', 'NEW', 1, 1, 'the first death' FROM outbox.workflow_states
        WHERE entity_id = 'bad'""")
    conn.execute("UPDATE outbox.jobs SET owner = 999, claimed_at = now(), attempt = 1")
    tick(dsn)
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs WHERE error LIKE 'worker 999 was lost%%'") == OTHERS + 1
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


def test_a_job_that_is_refused_keeps_no_other_from_becoming_due(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))
    for name in names():
        pipeline.submit(conn, name, Post())
    conn.execute("UPDATE outbox.jobs SET due = false, run_at = now() - interval '1 s'")
    refuse(conn, "jobs", "UPDATE", "NEW.due")
    tick(dsn)
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE due") == OTHERS


def test_a_workflow_that_others_refer_to_stays_and_all_else_that_is_old_goes(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))
    for name in names():
        pipeline.submit(conn, name, Post())
    drain(pipeline, dsn)
    conn.execute("CREATE TABLE outbox.crm (w uuid REFERENCES outbox.workflow_states (id))")
    conn.execute("INSERT INTO outbox.crm SELECT id FROM outbox.workflow_states WHERE entity_id = 'bad'")
    conn.execute("UPDATE outbox.workflow_states SET updated_at = now() - interval '1 year'")
    tick(dsn, workflows=0.0, history=0.0)
    assert moved(conn, "DONE") == ["bad"]
    assert value(conn, "SELECT count(*) FROM outbox.state_changes") == 0


def test_history_that_is_refused_keeps_no_other_kind_from_being_deleted(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    refuse(conn, "state_changes", "DELETE", "true", "a")
    conn.execute("INSERT INTO outbox.partition_rates VALUES ('p', 'work', 'x', now() - interval '1 day')")
    tick(dsn, history=0.0)
    assert value(conn, "SELECT count(*) FROM outbox.partition_rates") == 0


def refuse_one(conn: Conn, table: str, bad: str) -> None:
    """Has a trigger of the user's refuse to delete or change one row of a table."""
    conn.execute(
        f"""
        CREATE FUNCTION outbox.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF {bad} THEN RAISE EXCEPTION 'refused by the user''s trigger'; END IF;
            RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END $$;
        CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON outbox.{table} FOR EACH ROW EXECUTE FUNCTION outbox.refuse();
    """.encode()
    )


OLD_ROWS = {
    "state_changes": (
        "INSERT INTO outbox.state_changes (workflow_id, to_status, version, actor, at) "
        "SELECT outbox.uuid7(), 'A', n, 'a', now() - interval '1 year' FROM generate_series(1, 5) AS n",
        "OLD.version = 3",
        "SELECT count(*) FROM outbox.state_changes",
    ),
    "dead_jobs": (
        "INSERT INTO outbox.dead_jobs (workflow_id, pipeline, entity_id, stage, status, entered, attempts, error, died_at) "
        "SELECT outbox.uuid7(), 'p', n, 's', 'A', n, 1, 'no', now() - interval '1 year' FROM generate_series(1, 5) AS n",
        "OLD.entered = 3",
        "SELECT count(*) FROM outbox.dead_jobs WHERE error = 'no'",
    ),
    "checkpoints": (
        "INSERT INTO outbox.checkpoints (workflow_id, stage, entered, key, function, result, attempt, made_at) "
        "SELECT outbox.uuid7(), 's', n, 'k', 'f', '1', 1, now() - interval '1 year' FROM generate_series(1, 5) AS n",
        "OLD.entered = 3",
        "SELECT count(*) FROM outbox.checkpoints",
    ),
    "effects": (
        "INSERT INTO outbox.effects (workflow_id, entered, name, stage, function, call, attempt, started_at) "
        "SELECT outbox.uuid7(), n, 'e', 's', 'f', outbox.uuid7(), 1, now() - interval '1 year' FROM generate_series(1, 5) AS n",
        "OLD.entered = 3",
        "SELECT count(*) FROM outbox.effects",
    ),
    "partition_rates": (
        "INSERT INTO outbox.partition_rates (pipeline, stage, partition, next_at) "
        "SELECT 'p', 's', n, now() - interval '1 year' FROM generate_series(1, 5) AS n",
        "OLD.partition = '3'",
        "SELECT count(*) FROM outbox.partition_rates",
    ),
    "workflow_states": (  # reactions
        "INSERT INTO outbox.pipelines (pipeline, initial_status, reaction_of) VALUES ('p/r', 'DUE', 'p'); "
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata, updated_at) "
        "SELECT 'p/r', n, 'DONE', '{}', now() - interval '1 year' FROM generate_series(1, 5) AS n",
        "OLD.entity_id = '3'",
        "SELECT count(*) FROM outbox.workflow_states",
    ),
}


@pytest.mark.parametrize("table", OLD_ROWS)
def test_an_old_row_that_is_refused_keeps_no_other_from_going(
    conn: Conn, dsn: str, admin_dsn: str, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    made, bad, left = OLD_ROWS[table]
    with psycopg.connect(admin_dsn) as admin:
        admin.execute("SET session_replication_role = replica")
        admin.execute(made.encode())
    refuse_one(conn, table, bad)
    caplog.set_level(logging.ERROR, "outbox.maintenance")
    tick(dsn, times=2, history=1.0, dead_jobs=1.0)
    assert value(conn, left) == 1
    assert len([line for line in caplog.messages if "refused by the user" in line]) == 1, "named, and left for a while"
    conn.execute(f"DROP TRIGGER refuse ON outbox.{table}".encode())
    tick(dsn, history=1.0, dead_jobs=1.0)
    assert value(conn, left) == 0


def test_a_delivery_that_is_refused_keeps_no_other_from_being_forgotten(conn: Conn, dsn: str) -> None:
    conn.execute("""
        INSERT INTO outbox.delivery_attempts (consumer, message_id, attempts, at)
        SELECT 'c', outbox.uuid7(), n, now() - interval '1 year' FROM generate_series(1, 5) AS n""")
    refuse_one(conn, "delivery_attempts", "OLD.attempts = 3")
    tick(dsn, inbox=90.0)
    assert conn.execute("SELECT attempts FROM outbox.delivery_attempts").fetchall() == [(3,)]


def test_one_bad_row_of_many_costs_few_statements(conn: Conn, dsn: str) -> None:
    """Those that go together are told by their transaction."""
    pipeline = deployed(conn, one_stage(lambda run: None))
    pipeline.submit_many(conn, ((name, Post()) for name in ["bad", *(f"e{n}" for n in range(200))]))
    conn.execute("UPDATE outbox.jobs SET due = false, run_at = now() - interval '1 s'")
    refuse(conn, "jobs", "UPDATE", "NEW.due")
    tick(dsn)
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE due") == 200
    assert value(conn, "SELECT count(DISTINCT xmin::text) FROM outbox.jobs WHERE due") <= 8


# A parent's trouble is the parent's.


def family(conn: Conn, *, to: str = "DONE") -> tuple[Pipeline[Any], Pipeline[Any]]:
    parent: Pipeline[Any] = Pipeline("parent", initial="A", final={"DONE", "GONE"})
    kids: Pipeline[Any] = Pipeline("kids", initial="K", final={"OK", "EXPIRED"})

    @parent.stage("start", on="A", to="WAITING")
    async def start(run: Run[Any]) -> WaitForChildren:
        run.spawn(kids, "kid", {})
        return WaitForChildren(to="DONE", status="WAITING")

    parent.allow("WAITING", to="DONE")
    kids.allow("K", to={"OK", "EXPIRED"})
    deployed(conn, kids)
    return deployed(conn, parent), kids


@pytest.mark.parametrize("trouble", ["an illegal change", "a trigger"])
def test_a_parent_that_cannot_move_keeps_its_child_not_from_ending_and_moves_once_it_can(
    conn: Conn, dsn: str, trouble: str
) -> None:
    parent, _ = family(conn)
    parent.submit(conn, "bad", {})
    drain(parent, dsn)
    legal = "pipeline = 'parent' AND to_status = 'DONE'"
    if trouble == "a trigger":
        refuse(conn, "workflow_states", "UPDATE", "NEW.current_status = 'DONE'")
    else:
        conn.execute(f"DELETE FROM outbox.legal_changes WHERE {legal}".encode())
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'OK' WHERE entity_id = 'kid'")
    assert (status_of(conn, "kid"), status_of(conn, "bad")) == ("OK", "WAITING")
    tick(dsn)
    assert status_of(conn, "bad") == "WAITING"
    if trouble == "a trigger":
        conn.execute("DROP TRIGGER refuse ON outbox.workflow_states")
    else:
        conn.execute("INSERT INTO outbox.legal_changes VALUES ('parent', 'WAITING', 'DONE')")
    tick(dsn)
    assert status_of(conn, "bad") == "DONE"


def test_a_reminder_that_is_refused_keeps_no_other_from_going_out(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"YES"})

    @pipeline.stage("ask", on="NEW", to="REVIEW")
    async def ask(run: Run[Post]) -> WaitForApproval:
        return WaitForApproval("?", options={"yes": "YES"}, status="REVIEW")

    pipeline.allow("REVIEW", to="YES")
    deployed(conn, pipeline)
    for name in names():
        pipeline.submit(conn, name, Post())
    drain(pipeline, dsn)
    conn.execute("UPDATE outbox.approvals SET remind_every = '1h', remind_at = now() - interval '1s'")
    refuse(conn, "approvals", "UPDATE", "NEW.reminders > OLD.reminders")
    tick(dsn)
    assert value(conn, "SELECT count(*) FROM outbox.messages WHERE topic LIKE '%%reminder'") == OTHERS


# What fails together.


def test_a_job_made_by_hand_beside_a_dead_one_harms_none_that_fail_with_it(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        raise RuntimeError("no")

    pipeline = deployed(conn, one_stage(work, retry=Backoff(attempts=1)))
    pipeline.submit(conn, "bad", Post())
    drain(pipeline, dsn)
    conn.execute("""INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered)
        SELECT id, 'p', 'work', 'NEW', 1 FROM outbox.workflow_states""")
    for name in names()[1:]:
        pipeline.submit(conn, name, Post())
    drain(pipeline, dsn)
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == OTHERS + 1
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


@pytest.mark.parametrize("final", [False, True])
def test_a_failure_that_is_refused_harms_none_that_fail_with_it(conn: Conn, dsn: str, final: bool) -> None:
    async def work(run: Run[Post]) -> None:
        raise RuntimeError("no") if final else Retry(after=3600)

    pipeline = deployed(conn, one_stage(work, retry=Backoff(attempts=1 if final else 2)))
    for name in names():
        pipeline.submit(conn, name, Post())
    refuse(
        conn, "jobs", "UPDATE OR DELETE", "OLD.owner IS NOT NULL AND (TG_OP = 'DELETE' OR NEW.attempt = OLD.attempt)"
    )
    drain(pipeline, dsn)
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE owner IS NOT NULL") == 0
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE released > 0") == 1, "the refused one is put back"
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == (OTHERS if final else 0)


@pytest.mark.parametrize("final", [False, True])
def test_an_error_that_the_encoding_lacks_is_stored_as_far_as_it_can_be(
    admin_dsn: str, dsn: str, conn: Conn, final: bool
) -> None:
    name = f"{conn.info.dbname}_latin"
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0".encode()
        )
        admin.execute(f"GRANT CREATE ON DATABASE {name} TO PUBLIC".encode())
    dsn = dsn.replace(f"/{conn.info.dbname}", f"/{name}")
    migrations.apply(dsn)

    async def work(run: Run[Post]) -> None:
        raise ValueError("no such thing: Ж" if run.entity_id == "bad" else "no")

    with psycopg.connect(dsn, autocommit=True) as there:
        pipeline = deployed(there, one_stage(work, retry=Backoff(first=3600, attempts=1 if final else 2)))
        for each in names():
            pipeline.submit(there, each, Post())
        drain(pipeline, dsn)
        assert value(there, "SELECT count(*) FROM outbox.jobs WHERE owner IS NOT NULL") == 0
        errors = "SELECT error FROM outbox.dead_jobs UNION ALL SELECT error FROM outbox.jobs"
        told = [row[0] for row in there.execute(errors.encode())]
    assert len(told) == OTHERS + 1
    assert sum("no such thing: ?" in error for error in told) == 1
