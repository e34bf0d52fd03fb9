"""`outbox doctor`: what is wrong is found, and each finding says what to do. On a server that keeps its promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from apps.cli import posts
from kit.commands import Outbox
from kit.databases import templates
from kit.pipelines import Post, deployed, drain, value
from kit.servers import PostgresServer, Process, wait_for
from kit.shop import AHEAD
from outbox import Go, Pipeline
from outbox.operations import doctor
from outbox.texts import age, span

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
APP = "apps.cli:posts"


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """In the place of the tests' own, whose fsync is off."""
    with PostgresServer(fsync=True) as server:
        yield server


empty_template, template = templates()


@contextmanager
def setting(server: PostgresServer, name: str, value_: str) -> Iterator[None]:
    """Have a setting of the whole server for a while."""
    with server.admin() as admin:

        def reload() -> None:
            before = value(admin, "SELECT pg_conf_load_time()")
            admin.execute("SELECT pg_reload_conf()")
            wait_for(lambda: value(admin, "SELECT pg_conf_load_time()") > before, what="the settings are read")

        admin.execute(f"ALTER SYSTEM SET {name} = {value_}".encode())
        reload()
        try:
            yield
        finally:
            admin.execute(f"ALTER SYSTEM RESET {name}".encode())
            reload()


def troubles(outbox: Outbox, *options: str) -> list[tuple[str, str]]:
    """Run the doctor; return what isn't ok as (level, what). Each must say what to do, and bad ones must exit 1."""
    done = outbox("doctor", "--json", *options, code=None)
    assert done.err == ""
    found = [finding for finding in done.json if finding["level"] != "ok"]
    assert all(finding.keys() == {"level", "what", "do"} for finding in done.json)
    assert all(finding["do"] for finding in found), "each says what to do"
    assert done.code == any(finding["level"] == "bad" for finding in found)
    return [(finding["level"], finding["what"]) for finding in found]


@pytest.fixture
def shop(conn: Conn) -> Conn:
    """Posts are deployed, and a worker is there that serves them."""
    deployed(conn, posts)
    stages = [stage.queue for stage in posts.stages.values()]
    conn.execute("INSERT INTO outbox.workers (name, stages, lease) VALUES ('host:1', %s, '1 hour')", [stages])
    return conn


def test_a_healthy_database_has_nothing_but_good_findings(outbox: Outbox, shop: Conn, dsn: str) -> None:
    posts.submit_many(shop, [("a", Post()), ("b", Post(content="risky"))])
    drain(posts, dsn)
    posts.submit(shop, "c", Post())
    done = outbox("doctor", "--app", APP, "--json")
    assert {finding["level"] for finding in done.json} == {"ok"}
    said = [finding["what"] for finding in done.json]
    assert said[0].startswith("Postgres ")
    assert "the schema is up to date" in said
    assert any(line.startswith("pipeline posts was deployed at 2") for line in said)
    assert "no job is dead or stuck" in said


def test_the_text_shows_signs_and_what_to_do(outbox: Outbox, conn: Conn) -> None:
    said = [line.split() for line in outbox("doctor").out.splitlines()]
    assert said[0][:2] == ["✔", "Postgres"]
    assert ["!", "no", "pipeline", "is", "deployed"] in said
    assert ["→", "run:", "outbox", "deploy", "--app", "module:object"] in said


def test_a_missing_schema_and_pending_migrations_are_named_with_the_command(empty_dsn: str) -> None:
    outbox = Outbox(empty_dsn)
    ((level, what),) = troubles(outbox)
    assert level == "bad"
    assert "the schema lacks functions/ids, 0001_definition, " in what
    assert "outbox migrate" in outbox("doctor", code=1).out
    outbox("migrate")
    assert troubles(outbox) == [("warn", "no pipeline is deployed")]


def test_one_pending_migration_is_named(outbox: Outbox, conn: Conn) -> None:
    last = value(conn, "DELETE FROM outbox.schema_migrations WHERE name LIKE '0006%' RETURNING name")
    assert troubles(outbox) == [("bad", f"the schema lacks {last}")]


def test_a_schema_of_a_later_release_is_named(outbox: Outbox, shop: Conn) -> None:
    shop.execute("INSERT INTO outbox.schema_migrations (name) VALUES ('9999_from_the_future')")
    assert troubles(outbox) == [("warn", "the schema has 9999_from_the_future, of a later release")]


def test_code_that_differs_from_what_is_deployed_is_found(outbox: Outbox, shop: Conn) -> None:
    assert troubles(outbox, "--app", APP) == []
    ((level, what),) = troubles(outbox, "--app", "apps.cli:hasty")
    assert level == "warn"
    assert "pipeline posts differs from the code" in what
    assert "status WAITING_FOR_REVIEW is removed" in what
    ((level, what),) = troubles(outbox, "--app", "apps.cli:both")
    assert (level, "pipeline tickets differs from the code" in what) == ("warn", True)
    outbox("deploy", "--app", "apps.cli:both")
    assert troubles(outbox, "--app", "apps.cli:both") == []


def test_code_that_would_strand_workflows_is_bad(outbox: Outbox, shop: Conn, dsn: str) -> None:
    posts.submit(shop, "a", Post(content="risky"))
    drain(posts, dsn)
    ((level, what),) = troubles(outbox, "--app", "apps.cli:hasty")
    assert level == "bad"
    assert "WAITING_FOR_REVIEW: 1" in what


def test_jobs_that_no_worker_serves_are_found_until_one_does(outbox: Outbox, conn: Conn, spawn: Spawn) -> None:
    deployed(conn, posts)
    assert troubles(outbox) == [], "no worker is needed while there is no work"
    posts.submit_many(conn, [("a", Post()), ("b", Post())])
    assert troubles(outbox) == [("bad", "2 jobs waiting for stage posts.enrich, which no worker serves")]
    assert "outbox worker --stage enrich" in outbox("doctor", code=1).out
    spawn("worker", "--app", APP, "--stage", "decide")
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.workers") == 1)
    assert troubles(outbox), "a worker of another stage is no help"
    spawn("worker", "--app", APP, "--stage", "enrich", "--stage", "act")
    wait_for(lambda: not value(conn, "SELECT count(*) FROM outbox.jobs"))
    assert troubles(outbox) == []


def test_a_worker_that_missed_its_lease_is_found_and_serves_nothing(outbox: Outbox, shop: Conn) -> None:
    posts.submit(shop, "a", Post())
    worker = value(shop, "UPDATE outbox.workers SET beat_at = now() - interval '2 hours' RETURNING id")
    assert troubles(outbox) == [
        ("warn", f"worker {worker} (host:1) has missed its lease"),
        ("bad", "1 job waiting for stage posts.enrich, which no worker serves"),
    ]


def test_jobs_held_by_a_worker_that_is_gone_are_found(outbox: Outbox, shop: Conn) -> None:
    posts.submit(shop, "a", Post())
    shop.execute("UPDATE outbox.jobs SET owner = 4711, attempt = 1, claimed_at = now()")
    assert troubles(outbox) == [], "a sweeper may be just about to free it"
    shop.execute("UPDATE outbox.jobs SET claimed_at = now() - interval '2 minutes'")
    assert troubles(outbox) == [("bad", "1 job held by workers that are gone")]


def test_a_stage_that_is_behind_and_a_job_that_runs_for_hours_are_found(outbox: Outbox, shop: Conn) -> None:
    posts.submit_many(shop, [("a", Post()), ("b", Post())])
    shop.execute("UPDATE outbox.jobs SET run_at = now() - interval '20 minutes'")
    assert troubles(outbox) == [("warn", "posts.enrich is 20 minutes behind, with 2 jobs ready")]
    shop.execute(
        "UPDATE outbox.jobs SET attempt = 1, claimed_at = now() - interval '90 minutes', "
        "owner = (SELECT id FROM outbox.workers)"
    )
    assert troubles(outbox) == [("warn", "2 jobs of posts.enrich running for up to 90 minutes")]


def test_dead_jobs_are_found_until_a_person_retries_them(outbox: Outbox, shop: Conn, dsn: str) -> None:
    posts.submit(shop, "a", Post(content="rejected"))
    drain(posts, dsn)
    assert troubles(outbox) == [("warn", "1 dead job waiting for a person")]
    outbox("retry", "--all")
    assert troubles(outbox) == []


def test_a_workflow_without_a_job_is_found_and_the_advice_helps(outbox: Outbox, shop: Conn, admin_dsn: str) -> None:
    posts.submit_many(shop, [("a", Post()), ("b", Post())])
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(
            "DELETE FROM outbox.jobs WHERE workflow_id = (SELECT id FROM outbox.workflow_states WHERE entity_id = 'b')"
        )
    assert troubles(outbox) == [("bad", "1 workflow of posts in RECEIVED without a job, such as b")]
    assert "outbox retry ENTITY" in outbox("doctor", code=1).out
    outbox("retry", "b")
    assert troubles(outbox) == []
    assert value(shop, "SELECT count(*) FROM outbox.jobs") == 2


def horizon_holders(conn: Conn) -> list[str]:
    """What the doctor says of transactions that are open for any time at all."""
    found = doctor.examine(conn, long_transaction=0)
    return [finding.what for finding in found if "keeps Postgres from removing dead rows" in finding.what]


def test_parts_that_are_left_over_and_contents_that_lack_one_are_found(outbox: Outbox, shop: Conn) -> None:
    shop.execute(
        "INSERT INTO outbox.blob_parts (sha256, content, loose_since) "
        "SELECT sha256(c), c, now() - interval '3 days' FROM (VALUES (decode(repeat('00', 2097152), 'hex'))) AS v (c)"
    )
    shop.execute("INSERT INTO outbox.blobs (sha256, size, parts) VALUES ('x', 5, ARRAY['y'::bytea])")
    assert troubles(outbox) == [
        ("bad", "1 large content without all parts: somebody has deleted from outbox.blob_parts"),
        ("warn", "1 part of large contents (2 MB), unused for two days"),
    ]


def test_a_transaction_with_an_old_snapshot_is_found(conn: Conn, connect: Callable[..., Conn]) -> None:
    reader = connect(autocommit=False)
    reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    reader.execute("SELECT FROM outbox.jobs")
    (what,) = horizon_holders(conn)
    assert f"session pid {reader.info.backend_pid} " in what
    assert doctor.examine(conn) == doctor.examine(conn, long_transaction=60), "a minute is no matter"
    assert not any("pid" in finding.what for finding in doctor.examine(conn))
    reader.rollback()
    assert horizon_holders(conn) == []


def test_a_transaction_that_has_written_and_is_idle_is_found(conn: Conn, connect: Callable[..., Conn]) -> None:
    writer = connect(autocommit=False)
    writer.execute("INSERT INTO outbox.messages (topic) VALUES ('x')")
    (what,) = horizon_holders(conn)
    assert f"session pid {writer.info.backend_pid} (no name, idle in transaction)" in what
    writer.rollback()
    assert horizon_holders(conn) == []


def test_a_transaction_that_holds_nothing_is_not_reported(conn: Conn, connect: Callable[..., Conn]) -> None:
    idle = connect(autocommit=False)
    idle.execute("SELECT FROM outbox.jobs")
    assert horizon_holders(conn) == []


def test_a_prepared_transaction_is_found(conn: Conn) -> None:
    conn.execute("BEGIN")
    conn.execute("INSERT INTO outbox.messages (topic) VALUES ('x')")
    conn.execute("PREPARE TRANSACTION 'forgotten'")
    try:
        (what,) = horizon_holders(conn)
        assert what.startswith("prepared transaction forgotten keeps")
    finally:
        conn.execute("ROLLBACK PREPARED 'forgotten'")


def test_a_table_that_is_mostly_dead_rows_is_found(outbox: Outbox, shop: Conn, connect: Callable[..., Conn]) -> None:
    shop.execute("ALTER TABLE outbox.status_counts SET (autovacuum_enabled = false)")  # which would estimate them
    holder = connect(autocommit=False)
    holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    holder.execute("SELECT FROM outbox.status_counts")  # what is deleted from here on can't be vacuumed
    shop.execute("INSERT INTO outbox.status_counts SELECT 'x', 'y', 0 FROM generate_series(1, 100001)")
    shop.execute("DELETE FROM outbox.status_counts")
    shop.execute("SELECT pg_stat_force_next_flush()")
    ((level, what),) = troubles(outbox)
    assert level == "warn"
    assert what.startswith("outbox.status_counts has 100,00")


@pytest.mark.parametrize(
    ("name", "value_", "words"),
    [("fsync", "off", "fsync or full_page_writes is off"), ("full_page_writes", "off", "fsync or full_page_writes is off"),
     ("autovacuum", "off", "autovacuum is off")],
)  # fmt: skip
def test_a_server_that_can_lose_or_choke_is_bad_and_the_rest_is_still_examined(
    outbox: Outbox, conn: Conn, server: PostgresServer, name: str, value_: str, words: str
) -> None:
    with setting(server, name, value_):
        found = troubles(outbox)
    assert [level for level, _ in found] == ["bad", "warn"]
    assert words in found[0][1]
    assert found[1] == ("warn", "no pipeline is deployed")


@pytest.mark.parametrize(
    ("option", "level", "words"),
    [("synchronous_commit=off", "warn", "synchronous_commit is off"), ("default_transaction_read_only=on", "bad", "is read-only")],
)  # fmt: skip
def test_a_role_that_may_lose_or_not_write_is_found(shop: Conn, dsn: str, option: str, level: str, words: str) -> None:
    ((found, what),) = troubles(Outbox(f"{dsn}?options=-c%20{option.replace('=', '%3D')}"))
    assert (found, words in what) == (level, True)


def test_a_role_that_sees_only_its_own_sessions_is_told_so(outbox: Outbox, shop: Conn, admin_dsn: str) -> None:
    sees = "this role sees only its own sessions' transactions"
    assert sees in outbox("doctor").out
    assert sees not in Outbox(admin_dsn)("doctor").out


RELAY = """INSERT INTO outbox.relays (name, cluster, window_start, owner, trouble, updated_at)
VALUES (%s, (SELECT c.system_identifier::text FROM pg_control_system() AS c), '3:3:', %s, %s, now() - %s::interval)"""
MESSAGE = "INSERT INTO outbox.messages (topic, created_at) VALUES ('t', now() - %s::interval)"


def test_a_relay_that_is_gone_is_found_until_it_runs_or_is_forgotten(outbox: Outbox, shop: Conn) -> None:
    shop.execute(RELAY, ("old", "host:1", None, "1 hour"))
    assert troubles(outbox) == [], "nothing waits for it"
    shop.execute(MESSAGE, ("90 minutes",))
    said = "relay old is not running: messages have been waiting for it for 90 minutes; none is lost"
    assert troubles(outbox) == [("warn", said)]
    advice = outbox("doctor").out
    assert "outbox relay --name old;" in advice
    assert "outbox relay --forget old" in advice
    shop.execute("UPDATE outbox.relays SET updated_at = now() + interval '1 hour'")
    assert said not in outbox("doctor").out
    shop.execute("UPDATE outbox.relays SET updated_at = now() - interval '1 hour'")
    outbox("relay", "--forget", "old")
    assert troubles(outbox) == []


def test_the_trouble_of_a_relay_is_told_while_it_runs(outbox: Outbox, shop: Conn) -> None:
    shop.execute(RELAY, ("main", "host:1", "404 NOT_FOUND - no exchange 'x'", AHEAD))
    shop.execute(MESSAGE, ("1 hour",))
    assert troubles(outbox) == [("warn", "relay main: 404 NOT_FOUND - no exchange 'x'")]
    shop.execute("UPDATE outbox.relays SET trouble = NULL")
    assert troubles(outbox) == [("warn", "relay main is 60 minutes behind")]
    shop.execute("UPDATE outbox.relays SET window_start = pg_current_snapshot()")
    assert troubles(outbox) == []


def test_parked_messages_are_found_for_each_relay(outbox: Outbox, shop: Conn) -> None:
    for name in ("a", "b"):
        shop.execute(RELAY, (name, "host:1", None, AHEAD))
    shop.execute(
        "INSERT INTO outbox.parked_messages (relay, id, message_id, topic, created_at, reason) "
        "SELECT 'b', n, outbox.uuid7(), 't', now(), 'unroutable' FROM generate_series(1, 3) AS n"
    )
    assert troubles(outbox) == [("warn", "relay b has parked 3 messages")]
    assert "outbox parked --retry" in outbox("doctor").out


def test_what_consumers_have_parked_is_found_and_whether_it_only_waits_for_the_consumer(
    outbox: Outbox, shop: Conn
) -> None:
    shop.execute(
        "INSERT INTO outbox.parked_deliveries (consumer, queue, body, headers, reason, digest) "
        "SELECT c, 'q', '', '{}', 'no', int4send(n) FROM generate_series(1, 2) AS n, unnest('{crm,app}'::text[]) AS c"
    )
    shop.execute("UPDATE outbox.parked_deliveries SET retry = consumer = 'crm' OR digest = int4send(1)")
    assert troubles(outbox) == [
        ("warn", "consumer app has parked 2 messages, 1 of them to be tried again when it runs"),
        ("warn", "consumer crm has parked 2 messages, 2 of them to be tried again when it runs"),
    ]
    advice = " ".join(outbox("doctor").out.split())
    assert "outbox parked --consumer app --retry" in advice
    assert "start consumer crm: it takes them within seconds" in advice
    assert "outbox parked --consumer crm" not in advice
    shop.execute("DELETE FROM outbox.parked_deliveries")
    assert troubles(outbox) == []


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-1, "0 seconds"), (1, "1 second"), (119, "119 seconds"), (120, "2 minutes"), (5_400, "90 minutes"),
     (7_200, "2 hours"), (172_800, "2 days"), (1e9, "11,574 days")],
)  # fmt: skip
def test_times_are_told_in_units_of_which_there_are_two(seconds: float, told: str) -> None:
    assert span(seconds) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, ""),
        (-0.2, "0s"),
        (-90.0, "0s"),
        (0.4, "0s"),
        (119.0, "119s"),
        (120.0, "2m"),
        (7_300.0, "2h"),
        (172_800, "2d"),
    ],
)
def test_an_age_is_short_and_never_negative(seconds: float | None, told: str) -> None:
    assert age(seconds) == told


def test_messages_without_a_relay_are_reported_and_are_a_problem_when_they_are_old_or_many(
    outbox: Outbox, shop: Conn, admin_dsn: str
) -> None:
    shop.execute(MESSAGE, ("2 hours",))
    assert troubles(outbox) == []
    said = "there is no relay: the log keeps messages, the oldest for "
    assert f"{said}2 hours" in outbox("doctor").out
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("UPDATE pg_class SET reltuples = 2000000 WHERE oid = 'outbox.messages_1'::regclass")
    assert troubles(outbox) == [("warn", f"{said}2 hours")]
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("UPDATE pg_class SET reltuples = 0 WHERE oid = 'outbox.messages_1'::regclass")
    shop.execute("UPDATE outbox.messages SET created_at = now() - interval '8 days'")
    assert troubles(outbox) == [("warn", f"{said}8 days")]
    assert "outbox worker --keep-messages 7" in outbox("doctor").out


def test_waits_that_are_not_ended_are_found(outbox: Outbox, conn: Conn, dsn: str) -> None:
    waits: Pipeline[Post] = Pipeline("waits", data=Post, initial="NEW", final={"DONE", "LATE"})
    waits.stage("work", on="NEW", to={"DONE", "WAITING"})(lambda run: Go("WAITING"))
    waits.deadline("WAITING", hours=1, to="LATE")
    waits.every("* * * * *", name="look")(lambda tick: None)
    deployed(conn, waits).submit_many(conn, [("a", Post()), ("b", Post())])
    drain(waits, dsn)
    conn.execute("UPDATE outbox.jobs SET deadline = now() - interval '1 hour'")
    conn.execute(
        "UPDATE outbox.jobs SET on_deadline = 'NOWHERE' WHERE workflow_id = (SELECT max(id::text) FROM outbox.workflow_states)::uuid"
    )
    conn.execute(
        "UPDATE outbox.schedules SET next_at = now() - interval '5 minutes', attempts = 3, error = 'ValueError: no'"
    )
    outbox("pause", "waits.work", "--by", "sarah", "--reason", "the service is down")
    conn.execute("UPDATE outbox.pauses SET paused_at = now() - interval '5 minutes'")
    assert troubles(outbox) == [
        ("bad", "1 workflow of waits in WAITING past the deadline"),
        ("bad", "1 workflow of waits in WAITING past the deadline"),
        ("warn", "schedule waits.look is 5 minutes late, with 3 failed attempts: ValueError: no"),
        ("warn", "waits.work is paused by sarah for 5 minutes: the service is down"),
    ]


def test_a_distribution_of_the_same_import_name_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor._installation()) == []
    (tmp_path / "outbox-0.1.8.dist-info").mkdir()
    (tmp_path / "outbox-0.1.8.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: outbox\nVersion: 0.1.8\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = doctor._installation()
    assert (finding.level, "SMTP" in finding.what, "pip uninstall outbox" in finding.do) == ("bad", True, True)
