"""Nobody gets more by what he says: every setting, every function and every name is tried as every role."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, status_of, value
from kit.roles import GROUPS, As
from kit.waits import Order, trail
from outbox import Change, Pipeline, Run, WaitForApproval, WaitForSignal
from outbox.engine.retention import KEEP_REACTIONS

Conn = psycopg.Connection[Any]
SQL = Path(__file__).parents[2] / "sql"

# The pipeline: a question, then a signal, then a person's word, and only then it is paid.


@pytest.fixture
def pay(conn: Conn, dsn: str) -> Pipeline[Order]:
    pay: Pipeline[Order] = Pipeline("pay", data=Order, initial="NEW", final={"PAID", "NO"})

    @pay.stage("ask", on="NEW", to="ASKED")
    async def ask(run: Run[Order]) -> Any:
        return WaitForApproval("Go on?", options={"approve": "BILLED", "also": "BILLED", "reject": "NO"})

    @pay.stage("bill", on="BILLED", to="UNPAID")
    async def bill(run: Run[Order]) -> Any:
        return WaitForSignal("go", to="REVIEWED")

    @pay.stage("pay", on="APPROVED", to="PAID")
    async def pay_it(run: Run[Order]) -> None:
        paid.append(run.entity_id)

    @pay.on_change("PAID", "NO", name="tell")
    async def tell(run: Run[Change]) -> None:
        told.append(run.data)

    pay.allow("ASKED", to={"BILLED", "NO"})
    pay.allow("UNPAID", to={"REVIEWED", "NO"})
    pay.allow("REVIEWED", to={"APPROVED", "NO"})
    paid.clear()
    told.clear()
    return deployed(conn, pay)


paid: list[str] = []
told: list[Change] = []


def at(conn: Conn, dsn: str, pay: Pipeline[Order], status: str, *entities: str) -> None:
    """Bring workflows to ASKED, UNPAID or REVIEWED."""
    pay.submit_many(conn, [(entity, Order(total=5)) for entity in entities])
    drain(pay, dsn)
    for step, entity in itertools.product(
        ("BILLED", "REVIEWED")[: ("ASKED", "UNPAID", "REVIEWED").index(status)], entities
    ):
        conn.execute("UPDATE outbox.workflow_states SET current_status = %s WHERE entity_id = %s", [step, entity])
        drain(pay, dsn)


# Settings.


def settings() -> set[str]:
    """Every setting that anything in the database reads."""
    texts = (
        path.read_text() for path in [*SQL.glob("functions/*.sql"), *SQL.glob("views/*.sql"), SQL / "triggers.sql"]
    )
    return {name for text in texts for name in re.findall(r"(?:current_setting|told)\('(outbox\.\w+)'", text)}


def forged(workflow: str, version: int) -> dict[str, str]:
    """What each setting would say if it were believed."""
    spawn = [{"pipeline": "pay", "entity": "forged", "data": "{}", "cancel": None}]
    waits = [
        {"id": workflow, "join": True, "to_status": "APPROVED"},
        {"id": workflow, "within": 0, "on_deadline": "APPROVED"},
        {"id": workflow, "question": "forged?", "options": {"yes": "APPROVED"}, "assignee": "sarah"},
        {"id": workflow, "signal": "evil", "to_status": "APPROVED", "field": "total"},
        {"id": workflow, "after": 3600},
        {"id": workflow, "spawn": spawn},
    ]
    return {
        "outbox.waits": json.dumps([*waits, *({**wait, "version": version} for wait in waits)]),
        "outbox.worker": "1",
        "outbox.decision": "(deadline)",
        "outbox.early": json.dumps({workflow: {"status": "UNPAID", "stage": "pay", "attempt": 9}}),
        "outbox.retention": "on",
        "outbox.erasing": "on",
        "outbox.claim": "1:1:1",
        # These are for everybody: they are what somebody says of himself, and of the shape of his own data.
        "outbox.of_code": "now",
        "outbox.actor": "mallory",
        "outbox.reason": "because",
    }


def test_every_setting_is_tried() -> None:
    assert settings() == set(forged("", 1))


BOOKS = {
    "state_changes": "from_status, to_status, version, actor, reason, stage, attempt, login",
    "workflow_states": "pipeline, entity_id, current_status, metadata, version",
    "jobs": "pipeline, stage, status, entered, owner, attempt, due, deadline, on_deadline",
    "approvals": "status, question, options, assignee, deadline, ended, decision, to_status, decided_by, reason, edited, login",
    "children": "child_id, parent_id",
    "waits": "signal, children, to_status, field",
    "signals": "name, payload, sent_by, login, taken_at IS NULL",
    "dead_jobs": "pipeline, stage, status, attempts, error",
    "pauses": "pipeline, stage, paused_by, login",
}


def books(conn: Conn) -> dict[str, list[str]]:
    """All that the database says, without ids and times, and with each entity under one name."""
    found = {}
    for table, columns in BOOKS.items():
        rows = conn.execute(f"SELECT ({columns})::text FROM outbox.{table} ORDER BY 1".encode()).fetchall()
        found[table] = [row for (row,) in rows]
    return found


def plain(found: dict[str, list[str]]) -> str:
    """Return them without ids, times and numbers of workers."""
    return re.sub(r"(?<=worker-)\d+|[0-9a-f]{8}-[0-9a-f-]{27}|\d{4}-\d\d-\d\dT[0-9:.+]+", "…", str(found))


UPDATE = "UPDATE outbox.workflow_states SET current_status = %s WHERE entity_id = 'a'"
MOVES: dict[str, tuple[str, str, str]] = {  # who, from where, and what he may do
    "a signal": ("submitter", "UNPAID", "INSERT INTO outbox.signals (pipeline, entity_id, name) VALUES ('pay', 'a', 'go')"),
    "a start": ("submitter", "ASKED", "INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('pay', 'b')"),
    "an operator's signal": ("operator", "UNPAID", "INSERT INTO outbox.signals (pipeline, entity_id, name) VALUES ('pay', 'a', 'go')"),
    "a change": ("operator", "UNPAID", UPDATE.replace("%s", "'REVIEWED'")),
    "a change that answers": ("operator", "ASKED", UPDATE.replace("%s", "'NO'")),
    "a decision": ("operator", "ASKED", "SELECT outbox.decide('pay', 'a', 'approve')"),
    "a pause": ("operator", "ASKED", "INSERT INTO outbox.pauses (pipeline, stage) VALUES ('pay', 'pay')"),
    "a retry": ("operator", "UNPAID", "SELECT outbox.retry('pay', 'a')"),
}  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
def test_what_a_setting_says_changes_nothing_of_what_a_move_does(
    conn: Conn, dsn: str, pay: Pipeline[Order], as_: As, move: str
) -> None:
    who, status, statement = MOVES[move]
    at(conn, dsn, pay, status, "a")
    workflow, version = conn.execute(
        "SELECT id::text, version + 1 FROM outbox.workflow_states WHERE entity_id = 'a'"
    ).fetchall()[0]
    seen = []
    for forge in (False, True):
        login = as_(who)
        login.autocommit = False
        for name, said in forged(workflow, version).items():
            if forge or name in ("outbox.actor", "outbox.reason"):
                login.execute("SELECT set_config(%s, %s, false)", [name, said])
        login.execute(statement.encode())
        login.commit()
        seen.append(books(conn))
        if not forge:  # and the same again, as if nothing had been
            conn.execute("DELETE FROM outbox.workflow_states")
            with conn.transaction():
                conn.execute("SET LOCAL outbox.retention = 'on'")
                conn.execute("DELETE FROM outbox.state_changes")
            conn.execute("DELETE FROM outbox.pauses")
            at(conn, dsn, pay, status, "a")
            workflow, version = conn.execute(
                "SELECT id::text, version + 1 FROM outbox.workflow_states WHERE entity_id = 'a'"
            ).fetchall()[0]
    assert plain(seen[1]) == plain(seen[0])
    assert paid == []


def test_a_worker_that_is_not_at_work_is_believed_and_one_that_has_put_on_another_role_is_not(
    conn: Conn, dsn: str, pay: Pipeline[Order], as_: As, admin: Conn
) -> None:
    at(conn, dsn, pay, "UNPAID", "a")
    admin.execute("GRANT outbox_operator TO login_worker")
    login = as_("worker")
    assert value(login, "SELECT outbox.is_worker()")
    login.execute("SET ROLE outbox_operator")
    assert not value(login, "SELECT outbox.is_worker()")
    login.execute("SET outbox.actor = 'worker-1'")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match='only the engine acts as "worker-1"'):
        login.execute(UPDATE.encode(), ["REVIEWED"])
    login.execute("SET ROLE outbox_worker; SET outbox.actor = 'worker-1'")
    login.execute(UPDATE.encode(), ["REVIEWED"])
    assert trail(conn)[-1][1] == "worker-1"
    assert (
        value(conn, "SELECT login FROM outbox.state_changes ORDER BY at DESC, version DESC LIMIT 1") == "login_worker"
    )


def test_a_login_without_the_rights_of_its_group_is_what_it_has_set_its_role_to(
    conn: Conn, as_: As, admin: Conn
) -> None:
    admin.execute("CREATE ROLE login_plain LOGIN NOINHERIT IN ROLE outbox_worker")
    with psycopg.connect(admin.info.dsn.replace("user=postgres", "user=login_plain"), autocommit=True) as login:
        login.execute("SET ROLE outbox_worker")
        assert value(login, "SELECT outbox.is_worker()")
        login.execute("RESET ROLE")
        assert not value(conn, "SELECT has_table_privilege('login_plain', 'outbox.workers', 'INSERT')")


def test_functions_of_somebody_elses_give_no_rights_to_who_calls_them(
    conn: Conn, dsn: str, pay: Pipeline[Order], as_: As
) -> None:
    """An application's own function that runs as the owner, as a web page might call it."""
    at(conn, dsn, pay, "UNPAID", "a")
    conn.execute(
        "CREATE FUNCTION outbox.review(entity text) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS "
        "$$ UPDATE outbox.workflow_states SET current_status = 'REVIEWED' WHERE entity_id = entity $$; "
        "GRANT EXECUTE ON FUNCTION outbox.review TO outbox_submitter"
    )
    login = as_("submitter")
    workflow = value(conn, "SELECT id::text FROM outbox.workflow_states")
    for name, said in forged(workflow, 5).items():
        login.execute("SELECT set_config(%s, %s, false)", [name, said])
    login.execute("SELECT outbox.review('a')")
    assert trail(conn)[-1] == ("REVIEWED", "mallory", "because")
    assert (value(conn, "SELECT count(*) FROM outbox.jobs"), status_of(conn, "a")) == (0, "REVIEWED")


# Names.


NAMES = ["outbox", "worker-104", "WORKER-1", " outbox", "\tworker-1", "schedule pay.nightly", "Outbox "]


def test_names_of_the_engine_are_the_engines(conn: Conn, dsn: str, pay: Pipeline[Order], as_: As) -> None:
    at(conn, dsn, pay, "ASKED", "a")
    before = books(conn)
    sessions = {group: as_(group) for group in ("submitter", "operator")}
    for name, (group, statement) in itertools.product(NAMES, (
        ("submitter", "INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('pay', 'b')"),
        ("submitter", "INSERT INTO outbox.signals (pipeline, entity_id, name) VALUES ('pay', 'a', 'x')"),
        ("operator", UPDATE.replace("%s", "'NO'")),
        ("operator", "SELECT outbox.decide('pay', 'a', 'approve')"),
        ("operator", "INSERT INTO outbox.pauses (pipeline, stage) VALUES ('pay', 'pay')"),
    )):  # fmt: skip
        sessions[group].execute("SELECT set_config('outbox.actor', %s, false)", [name])
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="only the engine acts as"):
            sessions[group].execute(statement.encode())
    sessions["operator"].execute("RESET outbox.actor")
    for name, statement in itertools.product(NAMES, (
        "SELECT outbox.decide('pay', 'a', 'approve', %s)",
        "INSERT INTO outbox.pauses (pipeline, stage, paused_by) VALUES ('pay', 'pay', %s)",
    )):  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="only the engine acts as"):
            sessions["operator"].execute(statement.encode(), [name])
    assert books(conn) == before


def test_the_login_is_kept_beside_what_people_say_they_are(conn: Conn, dsn: str, pay: Pipeline[Order], as_: As) -> None:
    at(conn, dsn, pay, "ASKED", "a")
    operator = as_("operator")
    operator.execute("SET ROLE outbox_operator; SET outbox.actor = 'sarah'")
    operator.execute("SELECT outbox.decide('pay', 'a', 'approve')")
    operator.execute("INSERT INTO outbox.pauses (pipeline, stage) VALUES ('pay', 'pay')")
    drain(pay, dsn)
    submitter = as_("submitter")
    submitter.execute("SET outbox.actor = 'sarah'")
    submitter.execute("INSERT INTO outbox.signals (pipeline, entity_id, name) VALUES ('pay', 'a', 'go')")
    who = "SELECT {} , login FROM outbox.{} ORDER BY 1 DESC LIMIT 1"
    assert conn.execute(who.format("decided_by", "approvals").encode()).fetchall() == [("sarah", "login_operator")]
    assert conn.execute(who.format("paused_by", "pauses").encode()).fetchall() == [("sarah", "login_operator")]
    assert conn.execute(who.format("sent_by", "signals").encode()).fetchall() == [("sarah", "login_submitter")]
    assert conn.execute("SELECT actor ~ '^worker', login FROM outbox.state_changes ORDER BY version").fetchall() == [
        (False, conn.info.user), (True, conn.info.user), (False, "login_operator"), (True, conn.info.user), (False, "login_submitter"),
    ]  # fmt: skip


def test_of_two_options_that_lead_to_one_status_the_one_that_was_chosen_is_kept(
    conn: Conn, dsn: str, pay: Pipeline[Order]
) -> None:
    at(conn, dsn, pay, "ASKED", "a", "b")
    conn.execute("SELECT outbox.decide('pay', 'a', 'approve')")
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'BILLED' WHERE entity_id = 'b'")
    answers = "SELECT entity_id, ended, decision, to_status FROM outbox.approvals ORDER BY 1"
    assert conn.execute(answers).fetchall() == [
        ("a", "decided", "approve", "BILLED"),
        ("b", "decided", None, "BILLED"),
    ]


# Functions.

ODD: dict[str, list[str]] = {
    "text": ["NULL", "''", "'pay'", "'a'", "'pay/tell'", "repeat('x', 100000)", "'outbox.waits'"],
    "integer": ["NULL", "-2147483648", "-1", "0", "2147483647"],
    "bigint": ["NULL", "-1", "9223372036854775807"],
    "boolean": ["NULL", "true"],
    "double precision": ["NULL", "-100000", "0", "1", "'NaN'", "'Infinity'", "'-Infinity'", "1e308"],
    "jsonb": ["NULL", "'[]'", "'7'", "'{}'", "'[{\"id\": 7}]'", "(SELECT jsonb_build_array(jsonb_build_object('id', w.id, 'within', 0, 'on_deadline', 'NO')) FROM outbox.workflow_states AS w LIMIT 1)"],
    "uuid": ["NULL", "(SELECT w.id FROM outbox.workflow_states AS w LIMIT 1)"],
    "text[]": ["NULL", "'{}'", "'{NULL}'", "ARRAY['pay', 'NO']"],
    "uuid[]": ["NULL", "'{}'", "ARRAY(SELECT w.id FROM outbox.workflow_states AS w)"],
    "bigint[]": ["NULL", "'{NULL,1}'"],
    "double precision[]": ["NULL", "'{NaN}'"],
    "timestamp with time zone[]": ["NULL", "'{infinity}'", "ARRAY[now()]"],
    "timestamp with time zone": ["NULL", "'-infinity'"],
    "interval": ["NULL", "'-1 year'"],
}  # fmt: skip
MOST = 40
"""Calls of one function: all odd values of each argument beside one of the others, and not all of them together."""


def calls(arguments: str) -> list[str]:
    kinds = [kind.strip() for kind in arguments.split(",")] if arguments else []
    values = [ODD.get(kind, [f"NULL::{kind}"]) for kind in kinds]
    found = []
    for n in range(max((len(each) for each in values), default=1)):
        found.append([each[n % len(each)] for each in values])
    for n, each in enumerate(values):
        found += [
            [*(other[-1] for other in values[:n]), odd, *(other[-1] for other in values[n + 1 :])] for odd in each
        ]
    return [", ".join(f"{one}::{kind}" for one, kind in zip(call, kinds, strict=True)) for call in found[:MOST]]


def test_no_function_gives_rights_whatever_it_is_given(conn: Conn, dsn: str, pay: Pipeline[Order], as_: As) -> None:
    at(conn, dsn, pay, "ASKED", "a")
    conn.execute("SELECT outbox.inbox_forget(90)")
    before, floor = books(conn), value(conn, "SELECT outbox.inbox_oldest()")
    functions = conn.execute(
        "SELECT p.proname, p.oid::regprocedure::text, oidvectortypes(p.proargtypes) FROM pg_proc AS p "
        "WHERE p.pronamespace = 'outbox'::regnamespace AND p.prorettype <> 'trigger'::regtype ORDER BY 2"
    ).fetchall()
    assert len(functions) > 30
    # What these do is what their callers may do: a submitter starts workflows, and an operator pauses stages.
    own = {("submitter", "submit"), ("operator", "pause"), ("operator", "resume")}
    for group in GROUPS:
        login = as_(group)
        for name, signature, arguments in functions:
            for call in calls(arguments) if (group, name) not in own else ():
                with suppress(psycopg.Error):
                    login.execute(f"SELECT outbox.{name}({call})".encode())
                assert not login.closed, (group, signature, call)
        assert books(conn) == before, group
        assert value(conn, "SELECT outbox.inbox_oldest()") == floor, group


def test_reactions_are_kept_for_a_week_whatever_a_worker_asks(
    conn: Conn, dsn: str, pay: Pipeline[Order], as_: As
) -> None:
    at(conn, dsn, pay, "ASKED", "a")
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'NO'")
    drain(pay, dsn)
    before = books(conn)
    for days in ("NULL", "-100000", "0", "6.9", "'NaN'", "'-Infinity'"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"{KEEP_REACTIONS:g} days"):
            as_("worker").execute(f"SELECT outbox.reactions_forget({days}, 1000)".encode())
    assert books(conn) == before


def test_only_the_owner_lets_the_inbox_forget_after_less_than_a_week(conn: Conn, as_: As) -> None:
    conn.execute("SELECT outbox.inbox_forget(90)")
    oldest = value(conn, "SELECT outbox.inbox_oldest()")
    for group, days in itertools.product(("worker", "consumer"), ("1", "6.99")):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="7 days"):
            as_(group).execute(f"SELECT outbox.inbox_forget({days})".encode())
    assert value(conn, "SELECT outbox.inbox_oldest()") == oldest
    as_("consumer").execute("SELECT outbox.inbox_forget(7)")
    conn.execute("SELECT outbox.inbox_forget(1)")
    assert value(conn, "SELECT outbox.inbox_oldest() > now() - interval '2 days'")


# Jobs by hand.


def test_an_operator_retries_and_makes_no_job_of_his_own(conn: Conn, dsn: str, pay: Pipeline[Order], as_: As) -> None:
    at(conn, dsn, pay, "REVIEWED", "a")
    pay.submit(conn, "b", Order())
    conn.execute(
        "WITH j AS (DELETE FROM outbox.jobs RETURNING *) INSERT INTO outbox.dead_jobs SELECT j.workflow_id, j.pipeline, 'b', j.stage, j.status, j.entered, 1, 'why' FROM j"
    )
    operator = as_("operator")
    for statement in (
        "INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered) SELECT id, 'pay', 'pay', 'APPROVED', version FROM outbox.workflow_states",
        "DELETE FROM outbox.dead_jobs", "SELECT nextval('outbox.job_ids')", "UPDATE outbox.jobs SET stage = 'pay'",
    ):  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            operator.execute(statement.encode())
    assert not value(operator, "SELECT outbox.retry('pay', 'a')"), "no stage takes REVIEWED"
    assert value(operator, "SELECT outbox.retry('pay', 'b')")
    assert not value(operator, "SELECT outbox.retry('pay', 'b')"), "it has one by now"
    with pytest.raises(psycopg.Error, match='no workflow of entity "c"'):
        operator.execute("SELECT outbox.retry('pay', 'c')")
    for group in set(GROUPS) - {"operator"}:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_(group).execute("SELECT outbox.retry('pay', 'b')")
    assert conn.execute("SELECT stage, status FROM outbox.jobs").fetchall() == [("ask", "NEW")]
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 0
    drain(pay, dsn)
    assert status_of(conn, "b") == "ASKED"


FORGED_JOB = "INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered{more}) SELECT id, {values} FROM outbox.workflow_states WHERE entity_id = 'a'"


FORGED = {
    "'pay', 'pay', 'APPROVED', version": "takes APPROVED, and the workflow is in REVIEWED",
    "'pay', 'pay', 'REVIEWED', version": "takes APPROVED, and the workflow is in REVIEWED",
    "'other', 'work', 'APPROVED', version": "another pipeline or version",
    "'other', 'limited', 'APPROVED', version": "another pipeline or version",
    "'pay', 'pay', 'APPROVED', version + 1": "another pipeline or version",
}


def test_a_stage_does_not_run_for_a_workflow_whose_status_it_does_not_take(
    conn: Conn, dsn: str, pay: Pipeline[Order]
) -> None:
    at(conn, dsn, pay, "REVIEWED", "a")
    other: Pipeline[Post] = Pipeline("other", data=Post, initial="APPROVED", final={"DONE"})
    calls: list[str] = []
    run: Callable[[Run[Post]], None] = lambda run: calls.append(run.entity_id)  # noqa: E731 (a handler in a line)
    other.stage("work", on="APPROVED", to="MORE", running="WORKING", transaction=True)(run)
    other.stage("limited", on="MORE", to="DONE", concurrency=1)(run)
    deployed(conn, other)
    before = trail(conn)
    for values, reason in FORGED.items():
        limited = "'limited'" in values
        statement = FORGED_JOB.format(
            more=", partition, priority" if limited else "", values=values + (", '', 0" if limited else "")
        )
        conn.execute(statement.encode())
        drain([pay, other], dsn)
        assert (paid, calls, trail(conn)) == ([], [], before)
        assert reason in value(conn, "SELECT error FROM outbox.dead_jobs UNION ALL SELECT error FROM outbox.jobs")
        assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE owner IS NOT NULL") == 0
        conn.execute("DELETE FROM outbox.jobs")
        conn.execute("DELETE FROM outbox.dead_jobs")


# Reactions.


def test_an_entity_that_is_submitted_again_has_reactions_again(conn: Conn, dsn: str, pay: Pipeline[Order]) -> None:
    long = "x" * 512
    for entity in ("a", "a", long, long):
        at(conn, dsn, pay, "ASKED", entity)
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'NO' WHERE entity_id = %s", [entity])
        drain(pay, dsn)
        conn.execute("DELETE FROM outbox.workflow_states WHERE pipeline = 'pay'")
    assert [change.entity_id for change in told] == ["a", "a", long, long]
    assert len({change.workflow_id for change in told}) == 4


def test_a_reaction_can_be_neither_forged_nor_suppressed(
    conn: Conn, dsn: str, pay: Pipeline[Order], as_: As, admin: Conn
) -> None:
    at(conn, dsn, pay, "ASKED", "a")
    change = json.dumps({"pipeline": "pay", "entity_id": "a", "workflow_id": value(conn, "SELECT id::text FROM outbox.workflow_states"),
                         "from_status": "ASKED", "status": "PAID", "version": 3, "actor": "director", "at": "2026-01-01", "data": {}})  # fmt: skip
    admin.execute("CREATE SCHEMA mine AUTHORIZATION login_submitter")
    submitter = as_("submitter")
    submitter.execute("""
        CREATE TABLE mine.orders (n integer);
        CREATE FUNCTION mine.forge() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
            INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('pay/tell', 'a@3'); RETURN NULL; END $$;
        CREATE TRIGGER forge AFTER INSERT ON mine.orders FOR EACH ROW EXECUTE FUNCTION mine.forge();
    """)
    insert = "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata) VALUES ('pay/tell', {}, {}, {})"
    for entity, status in itertools.product(("'a@3'", "'a@3@' || gen_random_uuid()"), ("'DUE'", "'DONE'", "NULL")):
        for session in (submitter, conn):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is a reaction"):
                session.execute(insert.format(entity, status, f"'{change}'").encode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is a reaction"):
        submitter.execute("INSERT INTO mine.orders VALUES (1)")
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="is a reaction"),
        submitter.cursor().copy("COPY outbox.workflow_states (pipeline, entity_id) FROM STDIN") as copy,
    ):
        copy.write(b"pay/tell\ta@3\n")
    drain(pay, dsn)
    assert told == []
    as_("operator").execute("UPDATE outbox.workflow_states SET current_status = 'NO' WHERE entity_id = 'a'")
    drain(pay, dsn)
    assert [(change.entity_id, change.actor) for change in told] == [("a", "login_operator")]


def test_a_pipeline_with_a_slash_in_its_name_is_not_a_reaction_by_that(conn: Conn, as_: As) -> None:
    plain: Pipeline[Post] = Pipeline("shop/orders", data=Post, initial="NEW", final={"DONE"})
    plain.stage("work", on="NEW", to="DONE")(lambda run: None)
    deployed(conn, plain)
    assert plain.submit(as_("submitter"), "a", Post()).created


BROKEN = {
    "settings are believed from anybody": ("told", "AND outbox.is_worker()", ""),
    "the role of the function is asked, not that of the session": ("session_role", "SESSION_USER", "CURRENT_USER"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mutant_of_the_rights_is_found(conn: Conn, dsn: str, pay: Pipeline[Order], as_: As, name: str) -> None:
    """What the comparison is worth: with each of these, a submitter's signal begins waits of his own."""
    function, old, new = BROKEN[name]
    text = value(conn, "SELECT pg_get_functiondef(%s::regproc)", f"outbox.{function}")
    assert old in text
    conn.execute(text.replace(old, new).encode())
    with pytest.raises((AssertionError, psycopg.Error)):
        test_what_a_setting_says_changes_nothing_of_what_a_move_does(conn, dsn, pay, as_, "a signal")
