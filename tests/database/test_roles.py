"""Least privilege: each group can do its work and nothing else, and no group can get round the history."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pytest_postgresql.executors import NoopExecutor

from apps.roles import app
from kit.broker import channel
from kit.commands import Outbox
from kit.databases import OWNER, clone
from kit.inbox import made
from kit.pipelines import status_of, value
from kit.roles import GROUPS, As, dsn_as, forget_groups
from kit.servers import DEADLINE, PostgresServer, Process, wait_for
from outbox import Consumer, Delivery, Pipeline, Run, SchemaError, Worker
from outbox.database import migrations, schema
from outbox.definition import deploy
from outbox.engine import maintenance, retention
from outbox.engine.apart import ALL
from outbox.messages import ring

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]

APP = "apps.roles:app"
PAGE = Path(__file__).parents[2] / "docs" / "roles.md"


@pytest.fixture
def parcels(conn: Conn, groups: None) -> Conn:
    """The owner's connection to a database with the pipeline and what its handlers write to."""
    deploy.deploy(conn, app)
    conn.execute("CREATE TABLE outbox.sent (parcel text); GRANT INSERT ON outbox.sent TO login_worker")
    return conn


# What each may do, as the catalog has it, as it is when tried, and as the page prints it.

TABLES = """
SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p', 'v')
ORDER BY c.relname
"""
RIGHTS = """
SELECT string_agg(CASE WHEN has_table_privilege(%(role)s, %(table)s, p.name) THEN p.letter
                       WHEN p.letter IN ('S', 'I', 'U') AND has_any_column_privilege(%(role)s, %(table)s, p.name)
                       THEN lower(p.letter) END, '' ORDER BY p.n)
FROM (VALUES (1, 'S', 'SELECT'), (2, 'I', 'INSERT'), (3, 'U', 'UPDATE'), (4, 'D', 'DELETE'), (5, 'T', 'TRUNCATE'))
    AS p (n, letter, name)
"""
# Whole tables; then (in small letters) any one column.
STATEMENTS = {
    "S": "TABLE {table}",
    "I": "INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT (NULL::{table}).* WHERE false",
    "U": "UPDATE {table} SET {all} WHERE false",
    "D": "DELETE FROM {table} WHERE false",
    "T": "TRUNCATE {table}",
    "s": "SELECT {column} FROM {table}",
    "i": "INSERT INTO {table} ({column}) OVERRIDING SYSTEM VALUE SELECT NULL WHERE false",
    "u": "UPDATE {table} SET {column} = DEFAULT WHERE false",
}


def tables(conn: Conn) -> list[str]:
    return [name for (name,) in conn.execute(TABLES).fetchall()]


def columns(conn: Conn, table: str) -> list[str]:
    asked = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    return [name for (name,) in conn.execute(asked, [f"outbox.{table}"]).fetchall()]


def rights(conn: Conn, group: str, table: str) -> str:
    return (
        value(
            conn,
            RIGHTS.replace("%(role)s", "%s").replace("%(table)s", "%s"),
            *(f"outbox_{group}", f"outbox.{table}") * 2,
        )
        or ""
    )


def tried(conn: Conn, table: str, names: list[str]) -> str:
    """What a role can really do with a table, in the letters of the page."""
    found = ""
    for letter in "SIUDT":
        if allowed(conn, table, letter, names):
            found += letter
        elif letter in "SIU" and any(allowed(conn, table, letter.lower(), [name]) for name in names):
            found += letter.lower()
    return found


def allowed(conn: Conn, table: str, letter: str, names: list[str]) -> bool:
    quoted = [sql.Identifier(name) for name in names]
    statement = sql.SQL(STATEMENTS[letter]).format(
        table=sql.Identifier("outbox", table), column=quoted[0],
        all=sql.SQL(", ").join(sql.SQL("{} = DEFAULT").format(name) for name in quoted),
    )  # fmt: skip
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def printed() -> dict[str, list[str]]:
    """The table of the page: for each of ours the cells of the groups."""
    found = re.findall(r"^\| `(\w+)` \|((?: [SsIiUuDT]* \|){7})$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")[: len(GROUPS)]] for name, cells in found}


def test_the_page_prints_what_each_group_may_do(groups: None, conn: Conn) -> None:
    found: dict[str, list[str]] = {}
    for table in tables(conn):
        cells = [rights(conn, group, table) for group in GROUPS]
        # The children of a ring share a line.
        assert found.setdefault(re.sub(r"_\d+$", "_n", table), cells) == cells, table
    lines = "\n".join(f"| `{name}` | {' | '.join(cells)} |" for name, cells in found.items())
    assert printed() == found, f"docs/roles.md: print it as it is:\n{lines}"


@pytest.mark.parametrize("group", GROUPS)
def test_what_a_group_can_really_do_is_what_the_catalog_says(as_: As, conn: Conn, group: str) -> None:
    login = as_(group)
    views = {name for (name,) in conn.execute("SELECT viewname FROM pg_views WHERE schemaname = 'outbox'")}
    for table in tables(conn):
        if table in views:  # Postgres says of a view that it can't be written before it asks for rights
            assert allowed(login, table, "S", columns(conn, table)) == (rights(conn, group, table) == "S")
        else:
            assert tried(login, table, columns(conn, table)) == rights(conn, group, table), table


def test_only_relays_and_writers_have_sequences(groups: None, conn: Conn) -> None:
    asked = (
        "SELECT r.rolname, c.relname, p FROM pg_class AS c, pg_roles AS r, unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS p "
        "WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'S' AND r.rolname ~ '^outbox_' AND r.rolname <> %s "
        "AND has_sequence_privilege(r.oid, c.oid, p) ORDER BY 1, 2, 3"
    )
    assert conn.execute(asked, [OWNER]).fetchall() == [
        ("outbox_relay", "message_ids", "SELECT"),
        ("outbox_relay", "message_ids", "UPDATE"),
        ("outbox_submitter", "message_ids", "USAGE"),
        ("outbox_worker", "message_ids", "USAGE"),
    ]


def test_nobody_but_the_owner_writes_history_makes_objects_or_has_what_he_may_pass_on(groups: None, conn: Conn) -> None:
    for group in GROUPS:
        assert rights(conn, group, "state_changes") in ("", "S")
        assert not value(conn, "SELECT has_schema_privilege(%s, 'outbox', 'CREATE')", f"outbox_{group}")
    grantable = (
        "SELECT count(*) FROM pg_class AS c, aclexplode(c.relacl) AS a WHERE c.relnamespace = 'outbox'::regnamespace "
        "AND a.grantee <> c.relowner AND (a.is_grantable OR a.privilege_type IN ('REFERENCES', 'TRIGGER', 'MAINTAIN'))"
    )
    assert value(conn, grantable) == 0


# The work.


def test_a_pipeline_runs_with_each_part_as_a_role_of_its_own(parcels: Conn, as_: As, dsn: str, spawn: Spawn) -> None:
    submitter, operator = as_("submitter"), as_("operator")
    assert app.submit(submitter, "python", {}).created
    assert not app.submit(submitter, "python", {}).created
    assert app.submit_many(submitter, [("again", {}), ("python", {})]) == 1
    submitter.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('parcels', 'sql')")
    submitter.execute("INSERT INTO outbox.messages (topic, key, payload) VALUES ('hello', 'k', '{}')")
    Outbox(dsn_as("login_submitter", dsn))(
        "submit", "--pipeline", "parcels", input='{"entity_id": "cli"}\n{"entity_id": "reject"}'
    )
    everything = {"python", "again", "sql", "cli"}

    worker = spawn(
        "worker", "--app", APP, env={"OUTBOX_DSN": f"{dsn_as('login_worker', dsn)}?options=-csearch_path%3Doutbox"}
    )
    wait_for(
        lambda: entities(parcels, "WEIGHED") == everything, what=f"all are weighed; the worker says {worker.text()}"
    )
    wait_for(lambda: value(parcels, "SELECT error ~ 'too heavy' FROM outbox.dead_jobs"), what="one is dead")

    by_operator = Outbox(dsn_as("login_operator", dsn))
    by_operator("set-status", "cli", "ALLOWED", "--by", "sarah", "--reason", "light")
    operator.execute("UPDATE outbox.workflow_states SET current_status = 'ALLOWED' WHERE entity_id IN ('sql', 'again')")
    operator.execute("UPDATE outbox.workflow_states SET current_status = 'REFUSED' WHERE entity_id = 'python'")
    wait_for(lambda: entities(parcels, "DONE") == {"cli", "sql", "again"}, what="those that were allowed are done")
    assert [row["entity_id"] for row in by_operator("dead", "--json").json] == ["reject"]
    parcels.execute("""UPDATE outbox.workflow_states SET metadata = '{"pardoned": true}' WHERE entity_id = 'reject'""")
    by_operator("retry", "--all")
    wait_for(lambda: status_of(parcels, "reject") == "WEIGHED", what="the dead one has run again")

    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert "permission denied" not in worker.text(), worker.text()
    deaths = [line for line in worker.text().splitlines() if " ERROR " in line]
    assert len(deaths) == 1, worker.text()
    assert "parcels.weigh reject is dead" in deaths[0]
    by = dict(parcels.execute(
        "SELECT w.entity_id, array_agg(c.actor ORDER BY c.version) FROM outbox.state_changes AS c "
        "JOIN outbox.workflow_states AS w ON w.id = c.workflow_id GROUP BY 1").fetchall())  # fmt: skip
    assert (by["cli"][0], by["cli"][3]) == ("login_submitter", "sarah")
    assert by["python"][3] == "login_operator"
    assert by["sql"][1:3] == by["sql"][4:] * 2, "a worker names itself"


def entities(conn: Conn, status: str) -> set[str]:
    rows = conn.execute("SELECT entity_id FROM outbox.workflow_states WHERE current_status = %s", [status]).fetchall()
    return {entity for (entity,) in rows}


def test_workers_sweep_fold_and_forget_without_owning_anything(parcels: Conn, as_: As, dsn: str, spawn: Spawn) -> None:
    app.submit(as_("submitter"), "die", {})
    parcels.execute("INSERT INTO outbox.inbox (consumer, message_id) VALUES ('crm', %s)", [made(150)])
    as_worker = {"OUTBOX_DSN": dsn_as("login_worker", dsn)}
    assert spawn("worker", "--app", APP, env=as_worker).wait() == 1, "it dies in its first attempt"
    heir = spawn("worker", "--app", APP, "--keep-inbox", "200", env=as_worker)  # what is 150 days old is left for us
    wait_for(lambda: status_of(parcels, "die") == "WEIGHED", what=f"another runs it again: {heir.text()}")
    login = as_("worker")
    before = value(parcels, "SELECT sum(workflows) FROM outbox.status_counts")
    login.execute(maintenance.SQL["counts_fold"])
    assert value(parcels, "SELECT sum(workflows) FROM outbox.status_counts") == before
    assert value(login, "SELECT array_agg(emptied) FROM outbox.inbox_forget(90)") == [True]
    login.execute(retention.SQL["retention_dead_jobs"], {"days": 1.0, "limit": 10, **ALL})


def test_large_contents_are_stored_swept_and_seen_by_roles_and_erased_by_the_owner_alone(
    parcels: Conn, as_: As, dsn: str
) -> None:
    large: Pipeline[Any] = Pipeline("large", data=dict, initial="NEW", final={"DONE"})

    @large.stage("work", on="NEW", to="DONE")
    async def work(run: Run[Any]) -> Any:
        await run.once("key", lambda: "x" * 100_000)
        await run.store(b"left" * 10_000)
        return {"letter": (await run.store(b"content")).model_dump()}

    deploy.deploy(parcels, large)
    large.submit(as_("submitter"), "a", {})
    asyncio.run(Worker(large, dsn_as("login_worker", dsn), drain=True).run())
    parcels.execute("UPDATE outbox.blob_uses SET kept_until = now() - interval '2 hours'")
    for name in ("retention_blob_uses", "retention_blobs"):
        as_("worker").execute(retention.SQL[name], {"hours": 1.0, "limit": 10})
    assert value(parcels, "SELECT count(*) FROM outbox.blobs") == 1
    assert value(as_("viewer"), "SELECT outbox.blob(encode(sha256, 'hex')) FROM outbox.blobs") == b"content"
    for group in GROUPS:
        for attempt in (
            "SELECT outbox.erase('large', 'a')",
            "SELECT outbox.erase_workflow('00000000-0000-0000-0000-000000000000', 'x', 'y')",
            "SET outbox.erasing = 'on'; UPDATE outbox.state_changes SET reason = NULL",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                as_(group).execute(attempt.encode())
    refused = Outbox(dsn_as("login_operator", dsn)).fails("erase", "a", "--pipeline", "large", "--yes")
    assert "erasing is for the owner of the schema outbox" in refused
    Outbox(dsn)("erase", "a", "--pipeline", "large", "--yes")
    assert value(parcels, "SELECT count(*) FROM outbox.blob_parts WHERE content = 'content'") == 0


@pytest.mark.parametrize("option", ["--keep-workflows", "--keep-history", "--keep-messages"])
def test_a_worker_that_may_not_delete_what_is_old_says_so_at_once(parcels: Conn, dsn: str, option: str) -> None:
    worker = Outbox(dsn_as("login_worker", dsn))
    line = worker("worker", "--app", APP, "--drain", option, "30", code=1).err
    assert option in line
    assert "owner" in line
    Outbox(dsn)("worker", "--app", APP, "--drain", option, "30")


SEEN = [["status"], ["show", "a"], ["dead"], ["parked"]]


def ageless(said: str) -> list[str]:
    """Return the words of a table without ages: each run of a command is a little later than the one before."""
    return [word for word in said.split() if not re.fullmatch(r"\d+[smh]", word)]


@pytest.mark.parametrize("group", ["viewer", "operator"])
def test_who_only_looks_sees_everything_and_changes_nothing(parcels: Conn, as_: As, dsn: str, group: str) -> None:
    app.submit(parcels, "a", {"of": "the data"})
    parcels.execute(
        "INSERT INTO outbox.dead_jobs SELECT id, pipeline, entity_id, 'weigh', 'NEW', 1, 1, 'why' FROM outbox.workflow_states"
    )
    parcels.execute(
        "INSERT INTO outbox.parked_messages (relay, id, message_id, topic, created_at, reason) VALUES ('main', 1, gen_random_uuid(), 't', now(), 'why')"
    )
    login = Outbox(dsn_as(f"login_{group}", dsn))
    for arguments in SEEN:
        assert ageless(login(*arguments).out) == ageless(Outbox(dsn)(*arguments).out)
        assert login(*arguments, "--json").json
    found = [finding["what"] for finding in login("doctor", "--app", APP, "--json", code=1).json]
    assert "the schema is up to date" in found
    assert "1 dead job waiting for a person" in found
    denied = [["submit", "--pipeline", "parcels"], ["deploy", "--app", "apps.cli:tickets"], ["migrate", "--roles"]]
    if group == "viewer":
        denied += [["set-status", "a", "WEIGHED"], ["retry", "a"], ["parked", "--retry"], ["relay", "--forget", "x"]]
    for arguments in denied:
        done = login(*arguments, input='{"entity_id": "b"}', code=1)
        assert len(done.err.splitlines()) == 1
        assert re.search("permission denied|may not|owner", done.err), (arguments, done)
        if done.err.startswith("outbox: permission denied"):
            assert "`outbox migrate --roles` makes groups" in done.err


def test_a_relay_publishes_parks_turns_the_ring_and_survives_a_restore(
    parcels: Conn, as_: As, dsn: str, amqp: str
) -> None:
    with channel(amqp) as opened:
        opened.exchange_declare("x", "topic", durable=True)
        opened.queue_declare("q", durable=True)
        opened.queue_bind("q", "x", "known")
    relay = Outbox(dsn_as("login_relay", dsn))
    submitter, operator = as_("submitter"), Outbox(dsn_as("login_operator", dsn))

    def write(topic: str) -> None:
        submitter.execute("INSERT INTO outbox.messages (topic, key, payload) VALUES (%s, 'k', '1')", [topic])

    def run() -> str:
        return relay("relay", "--exchange", "x", "--drain", env={"OUTBOX_AMQP_URL": amqp}).err

    for topic in ("known", "unknown"):
        write(topic)
    assert "stopped: 1 relayed, 0 parked" in run(), "one waits for a queue"
    assert "1 messages" in operator("parked", "--retry").out
    with channel(amqp) as opened:
        opened.queue_bind("q", "x", "unknown")
    assert "stopped: 1 relayed, 0 parked" in run()

    # Around the ring: what is passed is emptied, by the relay's own rights.
    parcels.execute("SELECT setval('outbox.message_ids', 1000000)")
    write("known")
    run()

    async def rotate() -> dict[str, str]:
        async with await psycopg.AsyncConnection.connect(dsn_as("login_relay", dsn), autocommit=True) as conn:
            return await ring.rotate(conn, 1e-9)

    assert asyncio.run(rotate()) == {}
    assert value(parcels, "SELECT count(*) FROM outbox.messages_0") == 0
    assert value(parcels, "SELECT last_value FROM outbox.message_ids") == 2_000_000, "and it was turned"
    write("known")
    assert "stopped: 1 relayed" in run()

    parcels.execute("UPDATE outbox.relays SET cluster = 'another'")
    assert "the database was restored" in run()
    parcels.execute("UPDATE outbox.relays SET updated_at = now() - interval '1 minute', owner = NULL")
    assert "is forgotten" in operator("relay", "--forget", "default").out


def test_a_consumer_records_parks_and_forgets(parcels: Conn, as_: As, dsn: str, amqp: str) -> None:
    with channel(amqp) as opened:
        opened.queue_declare("q", durable=True)
    handled: list[Any] = []

    async def handle(delivery: Delivery) -> None:
        if "failed" not in handled and delivery.payload == 2:
            handled.append("failed")
            raise RuntimeError("once")
        handled.append(delivery.payload)

    consumer = Consumer("q", handle, dsn=dsn_as("login_consumer", dsn), amqp_url=amqp, keep_inbox=30)
    running = threading.Thread(target=lambda: asyncio.run(consumer.run()))
    running.start()
    try:
        with channel(amqp) as opened:
            opened.basic_publish("", "q", b"no JSON")
        wait_for(lambda: value(parcels, "SELECT count(*) FROM outbox.parked_deliveries") == 1, what="one is parked")
        Outbox(dsn_as("login_operator", dsn))("parked", "--retry")
        for n in (1, 2):
            parcels.execute("INSERT INTO outbox.messages (topic, payload) VALUES ('q', %s)", [str(n)])
        Outbox(dsn_as("login_relay", dsn))("relay", "--drain", env={"OUTBOX_AMQP_URL": amqp})
        wait_for(lambda: value(parcels, "SELECT max(deliveries) FROM outbox.parked_deliveries") == 2, what="and again")
        wait_for(lambda: set(handled) == {1, 2, "failed"}, what="all are handled")
        wait_for(lambda: value(parcels, "SELECT count(*) FROM outbox.inbox") == 2, what="and committed")
        forgotten = "SELECT outbox.inbox_oldest() > now() - interval '32 days'"
        wait_for(lambda: value(parcels, forgotten), what="it has had the inbox forget")
    finally:
        consumer.stop()
        running.join(DEADLINE)


def test_a_handoff_takes_a_submitter_that_is_a_consumer_too(parcels: Conn, admin: Conn, as_: As, dsn: str) -> None:
    admin.execute("CREATE ROLE login_target LOGIN IN ROLE outbox_submitter, outbox_consumer")
    for key in ("first", "second", "first"):
        as_("submitter").execute("INSERT INTO outbox.messages (topic, key, payload) VALUES ('t', %s, '{}')", [key])
    done = Outbox(dsn_as("login_relay", dsn))(
        "relay", "--pipeline", "parcels", "--drain", env={"OUTBOX_TO_DSN": dsn_as("login_target", dsn)}
    )
    assert "stopped: 2 relayed, 1 parked" in done.err
    assert entities(parcels, "NEW") == {"first", "second"}
    assert value(parcels, "SELECT count(*) FROM outbox.inbox") == 2, "what had no effect is taken back"


# Attacks.

OWN_TABLE = """
CREATE TABLE mine.workflows (id uuid, pipeline text, entity_id text, current_status text, version bigint DEFAULT 1,
                             metadata jsonb, created_at timestamptz, updated_at timestamptz)
"""


@pytest.fixture
def mine(parcels: Conn, admin: Conn, as_: As) -> Conn:
    """A submitter with a schema of its own, first in its search_path."""
    admin.execute("CREATE SCHEMA mine AUTHORIZATION login_submitter")
    submitter = as_("submitter")
    submitter.execute("SET search_path = mine, outbox, pg_catalog")
    return submitter


def functions(conn: Conn) -> list[tuple[Any, ...]]:
    return conn.execute(
        "SELECT p.proname, p.oid::regprocedure::text, p.prorettype = 'trigger'::regtype, p.prosecdef, p.proconfig, "
        "has_function_privilege('public', p.oid, 'EXECUTE') "
        "FROM pg_proc AS p WHERE p.pronamespace = 'outbox'::regnamespace ORDER BY 2"
    ).fetchall()


def test_functions_that_run_as_the_owner_fix_their_search_path_and_are_not_for_everybody(conn: Conn) -> None:
    for name, _, is_trigger, as_owner, config, public in functions(conn):
        if is_trigger or as_owner:
            paths = [setting for setting in config or [] if setting.startswith("search_path=")]
            assert paths == ["search_path=pg_catalog, pg_temp"], name
            # Each returns what is no secret; triggers ask for it as the role that changes the row.
            assert not public or name in ("inbox_oldest", "plain_of", "door_of"), name


def test_a_trigger_function_cannot_be_borrowed_for_a_table_of_ones_own(mine: Conn, parcels: Conn) -> None:
    mine.execute(OWN_TABLE)
    tried = 0
    for name, _, is_trigger, *_ in functions(parcels):
        if is_trigger:
            for when in ("AFTER INSERT ON mine.workflows REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT",
                         "BEFORE INSERT ON mine.workflows FOR EACH ROW"):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    mine.execute(f"CREATE TRIGGER t {when} EXECUTE FUNCTION outbox.{name}()".encode())
                tried += 1
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported)):
                mine.execute(f"SELECT outbox.{name}()".encode())
    assert tried >= 16
    assert value(parcels, "SELECT count(*) FROM outbox.state_changes") == 0


def test_names_of_ones_own_before_ours_change_nothing_of_what_the_triggers_do(mine: Conn, parcels: Conn) -> None:
    mine.execute("""
        CREATE FUNCTION mine.now() RETURNS timestamptz LANGUAGE sql RETURN 'infinity'::timestamptz;
        CREATE FUNCTION mine.current_setting(text, boolean) RETURNS text LANGUAGE sql RETURN 'forged';
        CREATE FUNCTION mine.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'mine'; END $$;
        CREATE FUNCTION mine.same(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'mine'; END $$;
        CREATE OPERATOR mine.= (LEFTARG = text, RIGHTARG = text, FUNCTION = mine.same);
        CREATE TABLE mine.state_changes (workflow_id uuid, to_status text, version bigint, actor text, reason text);
        CREATE TEMP TABLE new_rows (id uuid, pipeline text, entity_id text, current_status text, version bigint);
        CREATE TEMP TABLE old_rows (LIKE new_rows);
        CREATE TEMP TABLE pg_class (oid oid);
        CREATE TEMP TABLE jobs (LIKE new_rows);
    """)
    mine.execute("INSERT INTO new_rows SELECT gen_random_uuid(), 'parcels', 'forged', 'DONE', 1")
    mine.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('parcels', 'honest')")
    history = "SELECT w.entity_id, c.to_status, c.actor, c.at < now() + interval '1 day' FROM outbox.state_changes AS c LEFT JOIN outbox.workflow_states AS w ON w.id = c.workflow_id"
    assert parcels.execute(history).fetchall() == [("honest", "NEW", "login_submitter", True)]
    assert value(parcels, "SELECT array_agg(stage) FROM outbox.jobs") == ["weigh"]
    assert value(mine, "SELECT count(*) FROM mine.state_changes") == 0


def test_an_operator_of_ones_own_does_not_keep_a_version_from_moving(parcels: Conn, admin: Conn) -> None:
    app.submit(parcels, "a", {})
    # An application's role that was given the data, too, as a worker has it, and makes `=` say that nothing has changed.
    admin.execute("CREATE ROLE login_app LOGIN IN ROLE outbox_worker; CREATE SCHEMA mine AUTHORIZATION login_app")
    with psycopg.connect(admin.info.dsn.replace("user=postgres", "user=login_app"), autocommit=True) as login:
        login.execute("""
            CREATE FUNCTION mine.same(jsonb, jsonb) RETURNS boolean LANGUAGE sql RETURN true;
            CREATE OPERATOR mine.= (LEFTARG = jsonb, RIGHTARG = jsonb, FUNCTION = mine.same);
            SET search_path = mine, pg_catalog;
            UPDATE outbox.workflow_states SET metadata = '{"changed": true}';
        """)
    assert value(parcels, "SELECT version FROM outbox.workflow_states") == 2


def test_a_submitter_says_neither_where_a_message_lies_nor_when_a_workflow_began(mine: Conn) -> None:
    for statement in (
        "INSERT INTO outbox.messages (id, topic) VALUES (5000000, 'a')",
        "INSERT INTO outbox.messages (xid, topic) VALUES ('1', 'a')",
        "INSERT INTO outbox.messages_0 (topic) VALUES ('a')",
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, version) VALUES ('parcels', 'a', 9)",
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, created_at) VALUES ('parcels', 'a', '2000-01-01')",
        "SELECT metadata FROM outbox.workflow_states",
        "SELECT setval('outbox.message_ids', 1)",
        "SELECT outbox.inbox_forget(1)",
        "ALTER TABLE outbox.workflow_states DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "COPY outbox.state_changes FROM STDIN",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            mine.execute(statement.encode())


def test_the_settings_of_the_engine_give_nobody_rights(mine: Conn, as_: As, parcels: Conn) -> None:
    app.submit(parcels, "a", {})
    for name in GROUPS:
        login = as_(name)
        login.execute("SET outbox.retention = 'on'; SET outbox.worker = '1'; SET outbox.claim = '1:1:1'")
        for statement in ("DELETE FROM outbox.state_changes", "UPDATE outbox.state_changes SET actor = 'x'",
                          "TRUNCATE outbox.state_changes", "TRUNCATE outbox.workflow_states"):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                login.execute(statement.encode())
    mine.execute("SET outbox.worker = 'no number'")
    mine.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('parcels', 'b')")
    assert value(parcels, "SELECT count(*) FROM outbox.state_changes") == 2


def test_garbage_on_our_channels_causes_polls_and_no_more(
    parcels: Conn, mine: Conn, dsn: str, amqp: str, spawn: Spawn
) -> None:
    worker = spawn("worker", "--app", APP, env={"OUTBOX_DSN": dsn_as("login_worker", dsn)})
    relay = spawn("relay", env={"OUTBOX_DSN": dsn_as("login_relay", dsn), "OUTBOX_AMQP_URL": amqp})
    wait_for(lambda: value(parcels, "SELECT bool_and(idle) FROM outbox.workers"), what="the worker is idle")
    wait_for(lambda: value(parcels, "SELECT bool_and(idle) FROM outbox.relays"), what="the relay is idle")
    number = value(parcels, "SELECT id FROM outbox.workers")
    for payload in ("", "x" * 7_999, "'; DROP TABLE outbox.jobs; --", "\x1b]0;owned\x07\r\n", '{"id": -1}', "%s{}\\"):
        for name in (f"outbox_{number}", "outbox_relay", "outbox_0", "outbox"):
            for _ in range(20):
                mine.execute("SELECT pg_catalog.pg_notify(%s, %s)", [name, payload])
    app.submit(parcels, "after", {})
    wait_for(lambda: status_of(parcels, "after") == "WEIGHED", what="work goes on")
    wait_for(
        lambda: value(parcels, "SELECT relayed + (SELECT count(*) FROM outbox.parked_messages) FROM outbox.relays") == 1
    )
    for process in (worker, relay):
        assert process.running
        assert not re.search("ERROR|owned|DROP", process.text()), process.text()


# Making them.


def test_two_databases_make_the_groups_at_once_and_any_number_of_times(
    admin: Conn, server: PostgresServer, template: NoopExecutor
) -> None:
    names = [f"roles_{n}" for n in range(4)]
    with contextlib.ExitStack() as databases:
        for name in names:
            databases.enter_context(clone(template, name))
        for _ in range(3):
            failed: list[Exception] = []
            threads = [threading.Thread(target=make, args=(server.dsn(name), failed)) for name in names * 2]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE)
            assert failed == []
            assert value(admin, "SELECT count(*) FROM pg_roles WHERE rolname ~ '^outbox_' AND NOT rolcanlogin") == len(
                GROUPS
            )
            for name in names:
                with psycopg.connect(server.dsn(name), autocommit=True) as conn:
                    forget_groups_here(conn)
            forget_groups(admin)


def make(dsn: str, failed: list[Exception]) -> None:
    try:
        with psycopg.connect(dsn, autocommit=True) as conn:
            migrations.make_roles(conn)
    except Exception as error:
        failed.append(error)


def forget_groups_here(conn: Conn) -> None:
    for group in GROUPS:
        conn.execute(f"DROP OWNED BY outbox_{group}".encode())


def test_who_may_not_make_roles_is_told_what_to_run_and_an_administrator_can(
    admin: Conn, admin_dsn: str, conn: Conn, outbox: Outbox
) -> None:
    line = outbox("migrate", "--roles", code=1).err
    assert "outbox migrate --roles --sql" in line
    script = outbox("migrate", "--roles", "--sql").out
    assert value(conn, "SELECT count(*) FROM pg_roles WHERE rolname ~ '^outbox_'") == 1, "printing makes nothing"
    admin.execute(script.encode())
    assert rights(conn, "viewer", "jobs") == "S"
    forget_groups_here(admin)
    # The groups are there: to give them their rights takes no more than to own the schema.
    assert "groups have their rights" in outbox("migrate", "--roles").out
    assert rights(conn, "viewer", "jobs") == "S"


def test_a_role_that_may_make_roles_needs_nobody(admin: Conn, outbox: Outbox, conn: Conn) -> None:
    admin.execute(f"ALTER ROLE {OWNER} CREATEROLE".encode())
    try:
        outbox("migrate", "--roles")
        conn.execute("CREATE ROLE login_worker LOGIN IN ROLE outbox_worker")
        assert rights(conn, "worker", "jobs") == "SUD"
    finally:
        admin.execute(f"ALTER ROLE {OWNER} NOCREATEROLE".encode())


def test_only_the_owner_gives_rights(groups: None, dsn: str) -> None:
    with (
        psycopg.connect(dsn_as("login_worker", dsn), autocommit=True) as login,
        pytest.raises(SchemaError, match="owner"),
    ):
        migrations.make_roles(login)


def test_a_later_migration_gives_rights_in_what_it_makes_and_takes_none(
    groups: None, conn: Conn, outbox: Outbox
) -> None:
    before = {(group, table): rights(conn, group, table) for group in GROUPS for table in tables(conn)}
    conn.execute("CREATE TABLE outbox.later (n int); GRANT UPDATE ON outbox.jobs TO outbox_viewer")
    conn.execute("DELETE FROM outbox.schema_migrations WHERE name = 'triggers'")  # which can be applied twice
    assert "applied triggers" in outbox("migrate").out
    assert rights(conn, "viewer", "later") == "S"
    assert {(group, table): rights(conn, group, table) for group, table in before} == before


def test_rights_of_an_earlier_release_are_replaced_and_those_of_a_later_one_are_not(
    groups: None, admin: Conn, conn: Conn, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between a step of the structure and the rights in it: the steps are part of their hash."""
    monkeypatch.setattr(migrations, "history", lambda: {**schema.history(), "grants": ["0ld"]})
    conn.execute("GRANT UPDATE ON outbox.jobs TO outbox_viewer")
    conn.execute("UPDATE outbox.schema_migrations SET hash = '0ld' WHERE name = 'grants'")
    assert outbox("migrate", "--check", code=1).out == "changed grants\n"
    assert "applied grants" in outbox("migrate").out
    assert rights(conn, "viewer", "jobs") == "S"
    conn.execute("GRANT UPDATE ON outbox.jobs TO outbox_viewer")
    conn.execute("UPDATE outbox.schema_migrations SET hash = 'new' WHERE name = 'grants'")
    with pytest.raises(SchemaError, match="grants of a later release"):
        migrations.make_roles(admin)
    assert rights(conn, "viewer", "jobs") == "SU"


def test_a_database_that_never_gave_rights_gives_none_by_itself(admin: Conn, conn: Conn, outbox: Outbox) -> None:
    admin.execute("CREATE ROLE outbox_viewer NOLOGIN")  # of another database of the cluster
    conn.execute("DELETE FROM outbox.schema_migrations WHERE name = 'triggers'")
    outbox("migrate")
    assert rights(conn, "viewer", "jobs") == ""


def test_check_and_roles_exclude_each_other(outbox: Outbox) -> None:
    assert "exclude" in outbox("migrate", "--check", "--roles", code=2).err
