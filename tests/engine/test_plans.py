"""EXPLAIN guards: what the hot path reads does not grow with the tables."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from kit.databases import keep_statistics
from kit.pipelines import Post, make_posts, value
from outbox import Pipeline, retry_all
from outbox.database import statements
from outbox.database.link import PLANNING
from outbox.definition import deploy
from outbox.definition.run import Message
from outbox.engine import claim, commit
from outbox.engine.apart import ALL
from outbox.engine.job import Failed, Finished, Job, Trouble
from outbox.engine.lane import Lane
from outbox.engine.pacing import ServerClock
from outbox.engine.sharing import LOCK_WAIT
from outbox.messages.log import SQL, Log
from outbox.messages.target import Lease

Conn = psycopg.Connection[Any]
BACKLOG = 30_000


@pytest.fixture
def planned(conn: Conn) -> Conn:
    """A connection with the settings of a worker's, prepared while the tables were empty: as in a young system."""
    for name, setting in PLANNING.items():
        conn.execute("SELECT set_config(%s, %s, false)", (name, setting))
    keep_statistics(conn)
    return conn


def explain(conn: Conn, statement: bytes, params: dict[str, Any]) -> dict[str, Any]:
    """Run a statement and return the plan that it was run by."""
    conn.prepare_threshold = None  # EXPLAIN itself is not prepared; the settings make its plan the generic one's
    row = conn.execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement, params).fetchone()
    assert row is not None
    found = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return dict(found[0])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def buffers(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def scans(plan: dict[str, Any]) -> set[tuple[str, str]]:
    """Return (how, what) of each scan of a table that grows."""
    return {
        (node["Node Type"], node.get("Index Name", node["Relation Name"]))
        for node in nodes(plan)
        if node.get("Relation Name") in {"jobs", "workflow_states", "state_changes", "messages", "dead_jobs"}
        and "Scan" in node["Node Type"]
    }


def submit_backlog(conn: Conn) -> Lane:
    posts = make_posts()
    deploy.deploy(conn, posts)
    posts.submit_many(conn, ((f"e{n}", Post()) for n in range(BACKLOG)))
    conn.execute("INSERT INTO outbox.workers (id, name, stages, lease) VALUES (1, 'test', '{}', '1 hour')")
    return Lane(posts.stages["enrich"], 100)


def test_a_queue_that_was_analyzed_when_it_was_empty_is_not_walked_over(
    planned: Conn, connect: Callable[..., Conn]
) -> None:
    """Its statistics say that there is nothing in it, so that all of its index looks cheaper than a few jobs of it; and what
    died is still there, as somebody's transaction is open."""
    submit_backlog(planned)
    planned.execute("DELETE FROM outbox.jobs")
    planned.execute("VACUUM (ANALYZE, TRUNCATE false) outbox.jobs")  # as where others are at work
    assert value(planned, "SELECT reltuples = 0 AND relpages > 100 FROM pg_class WHERE oid = 'outbox.jobs'::regclass")
    holder = connect(autocommit=False)
    holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    holder.execute("SELECT 1")
    posts = make_posts()
    posts.submit_many(planned, ((f"gone{n}", Post()) for n in range(BACKLOG)))
    planned.execute("DELETE FROM outbox.jobs")
    posts.submit_many(planned, ((f"new{n}", Post()) for n in range(50)))
    lane = Lane(posts.stages["enrich"], 50)
    statement, params = claim.request(1, [(lane, 50)], 1e9, careful=True)
    first = value(planned, "SELECT min(id) - 1 FROM outbox.jobs")
    before = entries_read(planned)
    claim.receive(
        1,
        {("posts", "enrich"): lane},
        planned.execute(statement, {**params, "marks": [first]}, prepare=True).fetchall(),
    )
    jobs = list(lane.waiting)
    assert len(jobs) == 50
    assert entries_read(planned) - before < 50 * 20
    for statement, params in (
        commit.fail([(job, Failed("no", 0.0)) for job in jobs[:5]]),
        commit.fail([(job, Failed("no", None)) for job in jobs[5:10]], wait=1.0),
        commit.release(jobs[10:20]),
        commit.put_back(jobs[20:30], Trouble("no")),
        commit.still_held(jobs[30:]),
        commit.finish([(job, Finished("ENRICHED", None, [])) for job in jobs[30:40]]),
        commit.finish([(job, Finished("ENRICHED", None, [])) for job in jobs[40:45]], wait=1.0),
    ):
        before = entries_read(planned)
        assert len(planned.execute(statement, params, prepare=True).fetchall()) >= 5
        assert entries_read(planned) - before < 50 * 20, statement.decode()
    before = entries_read(planned)
    with planned.transaction():
        finish = ends_turns(planned, [(job, Finished("ENRICHED", None, [])) for job in jobs[45:]])
        assert len(planned.execute(*finish, prepare=True).fetchall()) == 5
    assert entries_read(planned) - before < 50 * 20, "finish of turns"
    before = entries_read(planned)
    assert retry_all(planned) == 5
    assert entries_read(planned) - before < 50 * 20, "retry"


@pytest.mark.parametrize(
    "limits",
    [
        {"concurrency": 10_000},
        {"rate": "1000000/second", "priority": lambda d: d.enrichment},
        {"partition": lambda d: d.content},
        {"partition": "content", "concurrency": 50, "rate": "1000000/second", "total_concurrency": 10_000},
    ],
    ids=["concurrency", "rate", "in turn", "each"],
)
@pytest.mark.parametrize("tenants", [10, 5_000])
def test_a_claim_within_limits_reads_what_it_takes_whatever_waits(
    planned: Conn, limits: dict[str, Any], tenants: int
) -> None:
    """Also when it was planned while there was nothing: no index but that of the order can stand in for it then."""
    posts: Pipeline[Post] = Pipeline("posts", data=Post, initial="NEW", final={"DONE"})
    posts.stage("work", on="NEW", to="DONE", **limits)(lambda run: None)
    deploy.deploy(planned, posts)
    planned.execute("INSERT INTO outbox.workers (id, name, stages, lease) VALUES (1, 'test', '{}', '1 hour')")
    statement, params = claim.request_limited(1, [(Lane(posts.stages["work"], 100), 100)], 0.0, careful=True)
    assert planned.execute(statement, params, prepare=True).fetchall() == []
    posts.submit_many(planned, ((f"e{n}", Post(content=str(n % tenants))) for n in range(BACKLOG)))
    for _ in range(2):
        before = entries_read(planned)
        rows = planned.execute(statement, params, prepare=True).fetchall()
        assert len(rows) == 101
        assert entries_read(planned) - before < 100 * 20


def test_deadlines_that_pass_at_once_are_sought_by_their_workflow(conn: Conn) -> None:
    keep_statistics(conn)
    waiting: Pipeline[Post] = Pipeline("waiting", data=Post, initial="WAITING", final={"LATE"})
    waiting.deadline("WAITING", hours=1, to="LATE")
    deploy.deploy(conn, waiting)
    waiting.submit_many(conn, ((f"e{n}", Post()) for n in range(5_000)))
    conn.execute("VACUUM ANALYZE outbox.jobs")
    conn.execute("UPDATE outbox.jobs SET deadline = now() - interval '1 s'")
    conn.execute("ANALYZE outbox.workflow_states")
    for _ in range(3):
        before, states = entries_read(conn), entries_read(conn, "workflow_states")
        fired = conn.execute(
            statements.load("maintenance")["deadlines_fire"], {"limit": 200, "now": None, **ALL}, prepare=True
        )
        assert fired.fetchone() == (200, 200)
        assert entries_read(conn) - before < 200 * 20
        assert entries_read(conn, "workflow_states") - states < 200 * 20


def test_jobs_that_were_lost_since_the_queue_was_analyzed_are_sought_once(planned: Conn) -> None:
    """Its statistics say that no job is owned, so that plans are made for a single one."""
    submit_backlog(planned)
    planned.execute("VACUUM ANALYZE outbox.jobs")
    planned.execute(
        "UPDATE outbox.jobs SET owner = 99, attempt = CASE WHEN id % 2 = 0 THEN 1 ELSE 100 END WHERE id <= 400"
    )
    before = entries_read(planned)
    swept = planned.execute(statements.load("maintenance")["jobs_sweep"], {"limit": 400, **ALL}).fetchone()
    assert swept is not None
    assert swept[:2] == (200, 200)
    assert entries_read(planned) - before < 400 * 20


def test_returned_start_times_are_sought_one_by_one_whatever_partitions_there_are(planned: Conn) -> None:
    posts: Pipeline[Post] = Pipeline("posts", data=Post, initial="NEW", final={"DONE"})
    posts.stage("work", on="NEW", to="DONE", partition="content", rate="1/hour")(lambda run: None)
    deploy.deploy(planned, posts)
    planned.execute("INSERT INTO outbox.workers (id, name, stages, lease) VALUES (1, 'test', '{}', '1 hour')")
    posts.submit_many(planned, ((f"e{n}", Post(content=str(n))) for n in range(5_000)))
    lane = Lane(posts.stages["work"], 5_000)
    for _ in range(25):
        request = claim.request_limited(1, [(lane, 200)], 0.0, careful=True)
        rows = planned.execute(*request, prepare=True).fetchall()
        claim.receive_limited(1, {("posts", "work"): lane}, rows, ServerClock(), 0.0)
    jobs = list(lane.waiting)
    assert len(jobs) == 5_000
    before = entries_read(planned, "partition_rates")
    planned.execute(*commit.return_start_times(jobs[:100]), prepare=True)
    assert entries_read(planned, "partition_rates") - before < 100 * 5
    assert (
        value(planned, "SELECT count(*) FROM outbox.partition_rates WHERE next_at < now() + interval '1 minute'") == 100
    )


def ends_turns(conn: Conn, finished: list[tuple[Job, Finished]]) -> tuple[bytes, dict[str, Any]]:
    """Return the statement that ends a transaction in which handlers took turns. Its session plans as the user's do."""
    conn.execute(*commit.mark_transaction(finished[0][0]))
    for name in PLANNING:
        conn.execute(sql.SQL("SET LOCAL {} TO DEFAULT").format(sql.Identifier(name)))
    conn.execute(*commit.plan_transaction())
    return commit.finish(finished, marked=True, wait=LOCK_WAIT)


def entries_read(conn: Conn, table: str = "jobs") -> int:
    """How many entries of a table's indexes were read so far."""
    conn.execute("SELECT pg_stat_force_next_flush()")
    read = "SELECT sum(idx_tup_read)::integer FROM pg_stat_user_indexes WHERE schemaname = 'outbox' AND relname = %s"
    return int(value(conn, read, table))


def test_a_claim_reads_what_it_takes_and_starts_where_the_last_one_ended(planned: Conn) -> None:
    lane = submit_backlog(planned)
    first = explain(planned, *claim.request(1, [(lane, 100)], 1e9, careful=True))["Plan"]
    assert ("Index Scan", "jobs_ready_for_claim") in scans(first)
    assert not {scan for scan in scans(first) if scan[0] in ("Seq Scan", "Bitmap Heap Scan")}
    assert buffers(first) < 100 * 25, "some pages for each job that is taken, whatever waits behind it"

    # A hundred batches later the index begins with entries of jobs that are gone; nobody has vacuumed.
    planned.execute("DELETE FROM outbox.jobs WHERE id <= 20000")
    statement, params = claim.request(1, [(lane, 100)], 1e9, careful=True)
    walked = explain(planned, statement, {**params, "marks": [0]})["Plan"]
    jumped = explain(planned, statement, {**params, "marks": [20_100]})["Plan"]
    assert buffers(jumped) < buffers(first) * 1.5
    assert buffers(walked) > buffers(jumped) * 1.2, "the mark has something to save"


def test_a_commit_reads_only_the_rows_of_its_batch(planned: Conn) -> None:
    lane = submit_backlog(planned)
    claim.receive(
        1, {("posts", "enrich"): lane}, planned.execute(*claim.request(1, [(lane, 100)], 1e9, careful=True)).fetchall()
    )
    batch = [(job, outcome(job)) for job in lane.waiting]
    found = explain(planned, *commit.finish(batch))
    assert not {scan for scan in scans(found["Plan"]) if scan[0] == "Seq Scan"}
    assert buffers(found["Plan"]) < 100 * 40
    assert value(planned, "SELECT count(*) FROM outbox.messages") == 100


def outcome(job: Job) -> Finished:
    return Finished("ENRICHED", '{"content": "new"}', [Message("t", job.entity_id, "{}", None)])


def test_the_overview_counts_no_workflow(conn: Conn) -> None:
    keep_statistics(conn)
    submit_backlog(conn)
    conn.execute("VACUUM ANALYZE outbox.jobs, outbox.workflow_states, outbox.status_counts")
    found = explain(conn, statements.load("overview")["overview"], {"pipeline": None})["Plan"]
    assert buffers(found) < 500, "a few pages of counters, and the head of each line"


def test_no_session_compiles_the_plans_of_the_triggers(conn: Conn) -> None:
    dear = "SELECT proname FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace AND 'enable_seqscan=off' = ANY (proconfig)"
    assert conn.execute(dear.encode()).fetchall(), "there are such triggers"
    compiled = dear + " AND NOT 'jit=off' = ANY (proconfig)"
    assert conn.execute(compiled.encode()).fetchall() == [], "a penalty for scans looks like a plan worth compiling"


def test_a_relay_looks_for_new_messages_without_reading_the_log(dsn: str, conn: Conn) -> None:
    keep_statistics(conn)

    async def cut() -> dict[str, Any]:
        log = Log(dsn, "default", "test", Lease())
        relay = await log.connect()
        await log.take_over()
        conn.execute("INSERT INTO outbox.messages (topic) SELECT 't' FROM generate_series(1, %s::int)", (BACKLOG,))
        await log.cut()
        await log.advance(0, BACKLOG, {}, done=True)
        params = {"name": "default", "epoch": 1, "nonce": log._nonce}
        cursor = await relay.execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + SQL["relay_cut"], params)
        found = (await cursor.fetchall())[0][0][0]
        await log.close()
        return dict(found)

    found = asyncio.run(cut())["Plan"]
    assert not {node["Relation Name"] for node in nodes(found) if node["Node Type"] == "Seq Scan"}
    assert buffers(found) < 30


MILLION = """
    SET session_replication_role = replica; -- no triggers, so this is quick; the books are written by hand
    INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata)
    SELECT 'posts', 'e' || n, 'RECEIVED', '{}' FROM generate_series(1, 1000000) AS n;
    INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered)
    SELECT w.id, 'posts', 'enrich', 'RECEIVED', 1 FROM outbox.workflow_states AS w;
    INSERT INTO outbox.status_counts (pipeline, status, workflows) VALUES ('posts', 'RECEIVED', 1000000);
    INSERT INTO outbox.workers (id, name, stages, lease) VALUES (1, 'test', '{}', '1 hour');
"""


def test_a_batch_among_a_million_reads_what_it_does_among_few(planned: Conn, admin_dsn: str) -> None:
    posts = make_posts()
    deploy.deploy(planned, posts)
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(MILLION)
        for turn, name in enumerate(("never analyzed", "analyzed")):
            for what, plan in plans_of_a_hundred(planned, posts, turn * 100):
                assert max(node["Actual Rows"] * node["Actual Loops"] for node in nodes(plan)) >= 100, what
                assert not {scan for scan in scans(plan) if scan[0] == "Seq Scan"}, f"{what}, {name}"
                assert buffers(plan) < 100 * 40, f"{what}, {name}: {buffers(plan)} pages"
            admin.execute("ANALYZE outbox.jobs, outbox.workflow_states")


def plans_of_a_hundred(conn: Conn, posts: Pipeline[Post], start: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Do each thing that workers and people do with a hundred workflows; yield the plans."""
    maintenance = statements.load("maintenance")

    def taken() -> list[Job]:
        lane = Lane(posts.stages["enrich"], 100)
        request = claim.request(1, [(lane, 100)], 1e9, careful=True)
        claim.receive(1, {("posts", "enrich"): lane}, conn.execute(*request).fetchall())
        return list(lane.waiting)

    by_hand = "UPDATE outbox.workflow_states SET current_status = 'ENRICHED' WHERE pipeline = 'posts' AND entity_id = ANY (%(e)s)"
    submit = statements.load("submit")["workflows_submit_count"]
    those = {"first": 900_000 + start, "last": 900_099 + start}
    asked: dict[str, tuple[bytes, dict[str, Any]]] = {
        "claim": claim.request(1, [(Lane(posts.stages["enrich"], 100), 100)], 1e9, careful=True),
        "finish": commit.finish([(job, outcome(job)) for job in taken()]),
        "fail": commit.fail([(job, Failed("no", 1.0)) for job in taken()]),
        "give back": commit.release(taken()),
        "by hand": (by_hand.encode(), {"e": [f"e{800_000 + start + n}" for n in range(100)]}),
        "submit": (submit, {"pipeline": "posts", "entities": [f"x{start + n}" for n in range(100)], "metadata": ["{}"] * 100, "of_code": True}),
        "promote": (maintenance["jobs_promote_due"], {"limit": 100, "now": None, **ALL}),
        "sweep": (maintenance["jobs_sweep"], {"limit": 100, **ALL}),
    }  # fmt: skip
    late = "UPDATE outbox.jobs SET due = false, run_at = now() - interval '1 s' WHERE id BETWEEN %(first)s AND %(last)s"
    conn.execute(late.encode(), those)
    lost = "UPDATE outbox.jobs SET owner = 99, attempt = 1 WHERE id BETWEEN %(first)s + 10000 AND %(last)s + 10000"
    conn.execute(lost.encode(), those)
    for what, (statement, params) in asked.items():
        yield what, explain(conn, statement, params)["Plan"]
    together = [(job, outcome(job)) for job in taken()]
    with conn.transaction():
        found = explain(conn, *ends_turns(conn, together))
    yield "finish of turns", found["Plan"]


def test_children_are_paired_with_their_parents_by_a_hash(planned: Conn) -> None:
    """Of 5,000 children, a nested loop would compare each with each: 25 million pairs."""
    tasks: Pipeline[Post] = Pipeline("tasks", data=Post, initial="NEW", final={"DONE"})
    tasks.stage("work", on="NEW", to="DONE")(lambda run: None)
    deploy.deploy(planned, tasks)
    count = 5_000
    parent = tasks.submit(planned, "parent", Post()).id
    items = [
        {"id": str(parent), "spawn": [{"pipeline": "tasks", "entity": f"c{n}", "data": "{}"} for n in range(count)]}
    ]
    found = planned.execute("SELECT prosrc, proconfig FROM pg_proc WHERE proname = 'children_spawn'").fetchone()
    assert found is not None
    for name, _, setting in (each.partition("=") for each in found[1]):
        planned.execute("SELECT set_config(%s, %s, false)", (name, setting))
    statement = found[0].partition("BEGIN")[2].rpartition(";")[0].replace("(items)", "(%(items)s::jsonb)")
    statement = statement.replace("ANY (ids)", "ANY (%(ids)s::uuid[])")
    plan = explain(planned, statement.encode(), {"items": json.dumps(items), "ids": [parent]})["Plan"]
    assert value(planned, "SELECT count(*) FROM outbox.children") == count
    assert max(node.get("Rows Removed by Join Filter", 0) for node in nodes(plan)) <= count
