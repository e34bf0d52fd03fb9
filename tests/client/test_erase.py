"""Erasing: after it, no table has any text of the entity; its history says what happened, and who has erased the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest
from pydantic import BaseModel
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.factories import postgresql_noproc

from kit.commands import Outbox
from kit.databases import OWNER, clone
from kit.pipelines import QUICK, deployed, drain, status_of, value
from kit.waits import trail
from outbox import (
    Backoff,
    Blob,
    Change,
    Go,
    NotCancellable,
    NoWorkflow,
    Pipeline,
    Question,
    Retry,
    Run,
    WaitForApproval,
    WaitForChildren,
    WaitForSignal,
    decide,
    retry,
    signal,
)

Conn = psycopg.Connection[Any]
MARK = "Zyxwvut"
"""What stands for the texts of an entity. It has no digit, so that the kind of an error keeps it."""
LONG = f"{MARK} " * 20_000


def unsure() -> None:
    raise ValueError(f"no answer about {MARK}")


class Case(BaseModel):
    who: str
    act: str
    letter: Blob | None = None
    payment: Any = None


def cases(conn: Conn) -> Pipeline[Case]:
    """Each case does what its `act` says, and leaves the mark wherever it can."""
    cases: Pipeline[Case] = Pipeline(
        "cases", data=Case, initial="NEW", final={"DONE"}, cancelled="CANCELLED", strict=True
    )

    @cases.stage("work", on="NEW", to={"ASKED", "UNPAID", "DONE"}, retry=QUICK, partition="who", rate="1000000/second")
    async def work(run: Run[Case]) -> Any:
        run.publish(f"t.{run.data.act}", {"who": MARK}, key=MARK, headers={"who": MARK})
        data = run.data.model_copy(update={"letter": await run.store(LONG.encode())})
        await run.once("small", lambda: MARK)
        await run.once("large", lambda: LONG)
        await run.effect("letter", lambda: MARK)
        match run.data.act:
            case "die":
                raise ValueError(f"no such customer: {MARK}")
            case "fail":
                run.progress(MARK)
                while not value(conn, "SELECT count(*) FROM outbox.jobs WHERE progress IS NOT NULL"):
                    await asyncio.sleep(0.01)
                raise Retry(3600, f"{MARK} is not at home")
            case "ask":
                asked = {"options": {"yes": "DONE", "no": "DONE"}, "approvers": {"finance": 2}}
                return WaitForApproval(
                    status="ASKED", data=data,
                    questions=[Question(f"Is {MARK} right?", name=MARK, about={"who": MARK}, **asked)],
                )  # fmt: skip
            case "answer":
                return WaitForApproval(f"Is {MARK} right?", status="ASKED", options={"yes": "DONE"}, data=data)
            case "unsure":
                await run.effect("payment", unsure)
            case "wait":
                return WaitForSignal("payment", status="UNPAID", to="DONE", into="payment", data=data)
        return Go("DONE", data)

    cases.allow("ASKED", to="DONE")
    cases.allow("UNPAID", to="DONE")

    @cases.on_change("DONE", "ASKED", name="tell", retry=Backoff(attempts=1))
    async def tell(run: Run[Change]) -> None:
        run.publish("told", {"who": MARK})
        await run.once("told", lambda: MARK)
        if run.data.status == "ASKED":
            raise ValueError(f"can't tell {MARK}")

    return cases


def play(*, host: str, port: int, dbname: str, **_: object) -> None:
    """Plays the scene, once for all tests, each of which has a clone of its database."""
    dsn = f"postgresql://{OWNER}@{host}:{port}/{dbname}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        _play(conn, dsn)


def _play(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, cases(conn))
    for act in ("done", "die", "fail", "ask", "answer", "wait", "paid", "cancel", "unsure"):
        pipeline.submit(conn, act, Case(who=MARK, act="wait" if act == "paid" else act), reason=MARK)
    while not value(conn, "SELECT count(*) FROM outbox.dead_jobs WHERE entity_id = 'die'"):  # a retry isn't due at once
        drain(pipeline, dsn)
    decide(conn, pipeline, "ask", "yes", by="ann", groups=["finance"], reason=MARK, about={"who": f"{MARK} now"})
    decide(conn, pipeline, "answer", "yes", by="ann", reason=MARK)
    signal(conn, pipeline, "paid", "payment", {"of": MARK}, id=MARK)
    signal(conn, pipeline, "wait", "other", {"of": MARK}, id=MARK)
    drain(pipeline, dsn)
    assert status_of(conn, "paid") == "DONE"
    retry(conn, pipeline, "die", reason=MARK)
    drain(pipeline, dsn)
    conn.execute(
        "INSERT INTO outbox.parked_messages (relay, id, message_id, topic, key, payload, headers, workflow_id, created_at, reason) "
        "SELECT 'r', m.id, m.message_id, m.topic, m.key, m.payload, m.headers, m.workflow_id, now(), 'no route for Zyxwvut' "
        "FROM outbox.messages AS m WHERE topic = 't.done'"
    )
    conn.execute(
        "INSERT INTO outbox.parked_deliveries (consumer, queue, message_id, topic, body, headers, reason, digest) "
        "SELECT 'c', 'q', m.message_id::text, m.topic, 'Zyxwvut', m.headers, 'bad Zyxwvut', '' FROM outbox.messages AS m "
        "WHERE topic = 't.ask'"
    )


scene = postgresql_noproc(depends_on="template", dbname="erasing", load=[play])


class Played(NamedTuple):
    conn: Conn
    pipeline: Pipeline[Case]


@pytest.fixture
def played(scene: NoopExecutor) -> Iterator[Played]:
    """A database in which the scene was played."""
    with clone(scene) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        yield Played(conn, cases(conn))


TEXTS = """
SELECT c.relname, a.attname
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid JOIN pg_type AS t ON t.oid = a.atttypid
WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND a.attnum > 0 AND NOT a.attisdropped
  AND t.typname IN ('text', 'varchar', 'json', 'jsonb', 'bytea', '_text', '_bytea', 'name')
"""


def marked(conn: Conn) -> set[str]:
    """Returns the columns in which the mark is, also where it is bytes."""
    found = set()
    for table, column in conn.execute(TEXTS.encode()).fetchall():
        query = f"SELECT EXISTS (SELECT FROM outbox.{table} WHERE strpos({column}::text, %(m)s) + strpos({column}::text, %(b)s) > 0)"
        if value_of(conn, query):
            found.add(f"{table}.{column}")
    return found


def value_of(conn: Conn, query: str) -> Any:
    row = conn.execute(query.encode(), {"m": MARK, "b": MARK.encode().hex()}).fetchone()
    assert row is not None
    return row[0]


PLANTED = {
    "actions.reason", "approval_votes.reason", "approvals.data", "approvals.edited", "approvals.name", "approvals.question", "approvals.reason",
    "blob_parts.content", "checkpoints.result", "dead_counts.kind", "dead_jobs.error", "dead_jobs.kind", "dead_jobs.traceback",
    "effects.error", "effects.result", "jobs.error", "jobs.partition", "jobs.progress", "limits.served", "messages.headers", "messages.key", "messages.payload",
    "parked_deliveries.body", "parked_deliveries.headers", "parked_deliveries.reason", "parked_messages.headers",
    "parked_messages.key", "parked_messages.payload", "parked_messages.reason", "partition_rates.partition",
    "signals.payload", "signals.signal_id", "state_changes.reason", "workflow_states.metadata",
}  # fmt: skip
"""The columns in which the scene leaves the mark."""

NO_TEXT = {
    "an entity's id, by which its history is found": "workflow_states.entity_id dead_jobs.entity_id approvals.entity_id signals.entity_id",
    "names of people and of their groups": (
        "actions.actor actions.login approval_links.groups approval_links.login approval_links.person "
        "approval_votes.cast_by approval_votes.groups approval_votes.login approval_votes.person approvals.alone "
        "approvals.approvers approvals.asked_by approvals.asked_login approvals.assignee approvals.decided_by "
        "approvals.escalate_to approvals.login approvals.worker delegations.from_person delegations.groups delegations.login "
        "delegations.reason delegations.to_person effects.known_by pauses.login pauses.paused_by signals.login signals.sent_by "
        "state_changes.actor state_changes.login"
    ),
    "names that code gives": (
        "actions.action actions.pipeline actions.stage approval_links.decision approval_votes.option approvals.decision "
        "approvals.ended approvals.ends_wait approvals.options approvals.pipeline approvals.stage approvals.status "
        "approvals.to_status checkpoints.function checkpoints.key checkpoints.stage children.cancel_to dead_counts.pipeline "
        "dead_counts.stage dead_counts.status effects.function effects.name effects.stage effects.state dead_jobs.pipeline dead_jobs.stage dead_jobs.status delivery_attempts.consumer "
        "error_kinds.pipeline error_kinds.stage error_kinds.status inbox.consumer jobs.on_deadline jobs.pipeline jobs.stage "
        "jobs.status limits.pipeline limits.stage messages.topic parked_deliveries.consumer parked_deliveries.message_id "
        "parked_deliveries.queue parked_deliveries.topic parked_messages.relay parked_messages.routing_key "
        "parked_messages.topic partition_rates.pipeline partition_rates.stage pauses.pipeline pauses.stage resting.pipeline "
        "resting.status signal_names.name signal_names.pipeline signals.name signals.pipeline state_changes.from_status "
        "state_changes.stage state_changes.to_status status_counts.pipeline status_counts.status status_flow.pipeline "
        "status_flow.status waits.failed waits.field waits.on_failure waits.signal waits.to_status workflow_states.current_status "
        "workflow_states.pipeline"
    ),
    "hashes": (
        "approval_votes.shown approvals.shown blob_parts.sha256 blob_uses.sha256 blobs.parts blobs.sha256 checkpoints.blob effects.blob "
        "parked_deliveries.digest"
    ),
    "what deploys have written and processes are": "legal_changes. pipelines. relays. routes. schedules. schema_migrations. stages. workers.",
    "of stages": "pauses.reason",
    "the same as dead_counts.kind, once it is folded": "error_kinds.kind",
}


def test_every_column_that_can_have_a_text_of_an_entity_is_planted_or_has_a_reason_why_not(conn: Conn) -> None:
    reasons = " ".join(NO_TEXT.values()).split()
    tables = {name for name in reasons if name.endswith(".")}
    there = {f"{table}.{column}" for table, column in conn.execute(TEXTS.encode()) if f"{table}." not in tables}
    assert there == PLANTED | {name for name in reasons if not name.endswith(".")}, (
        "plant the mark in a new column, and erase it in sql/functions/erase.sql; or say here why it has no text of an entity"
    )


@pytest.mark.parametrize("folded", [False, True])
def test_after_erasing_no_table_has_any_text_of_the_entity(played: Played, folded: bool) -> None:
    conn, pipeline = played
    kinds = {"dead_counts.kind", "error_kinds.kind"}  # a worker folds the first ones into the others now and then
    assert marked(conn) | kinds == PLANTED | kinds
    assert marked(conn) & kinds
    if folded:
        from kit.scenes import MAINTENANCE

        conn.execute(MAINTENANCE["deaths_fold"])
        assert "error_kinds.kind" in marked(conn)
    entities = [
        entity for (entity,) in conn.execute("SELECT entity_id FROM outbox.workflow_states WHERE pipeline = 'cases'")
    ]
    assert len(entities) == 9
    for entity in entities:
        erased = pipeline.erase(conn, entity, by="tom", reason="their wish")
        assert erased.status == status_of(conn, entity)
    conn.execute("UPDATE outbox.partition_rates SET next_at = now()")
    assert marked(conn) == set()
    assert value(conn, "SELECT count(*) FROM outbox.blob_parts") == 0
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE pipeline <> 'cases'") == 0


def test_what_happened_stays_with_a_row_that_says_who_has_erased_the_rest(played: Played) -> None:
    conn, pipeline = played
    before = trail(conn, "done")
    erased = pipeline.erase(conn, "done", by="tom", reason="their wish")
    after = trail(conn, "done")
    assert [row[:2] for row in after[:-1]] == [row[:2] for row in before]
    assert after[-1] == ("DONE", "tom", "erased: their wish")
    assert {reason for *_, reason in after[:-1]} == {None}
    last = "SELECT version, login FROM outbox.state_changes ORDER BY version DESC, at DESC LIMIT 1"
    assert conn.execute(last).fetchone() == (erased.version, "outbox_owner")
    assert value(conn, "SELECT metadata ? '$erased' FROM outbox.workflow_states WHERE entity_id = 'done'")
    # Again is no error, and leaves a row more.
    assert pipeline.erase(conn, "done").version == erased.version + 1


def test_it_tells_what_went_and_what_is_out_of_reach(played: Played) -> None:
    conn, pipeline = played
    drain(pipeline, conn.info.dsn)
    conn.execute("INSERT INTO outbox.relays (name, cluster, window_start) VALUES ('r', 'x', pg_current_snapshot())")
    pipeline.submit(conn, "later", Case(who=MARK, act="done"))
    drain(pipeline, conn.info.dsn)
    later = pipeline.erase(conn, "later")
    assert (later.unsent, later.published, later.reactions, later.reactions_not_run) == (2, {}, 1, 0)
    asked = pipeline.erase(conn, "ask")
    assert (asked.unsent, asked.published, asked.parked_deliveries) == (0, {"t.ask": 1}, 1)
    assert (asked.reactions, asked.reactions_not_run) == (1, 1)
    done = pipeline.erase(conn, "done")
    assert (done.parked, done.published) == (1, {"told": 1}), "what is parked was not published"


def test_contents_that_others_have_too_stay(played: Played) -> None:
    conn, pipeline = played
    assert pipeline.erase(conn, "done").blobs_of_others > 0
    letter = (
        "SELECT outbox.blob(metadata -> 'letter' ->> 'sha256') FROM outbox.workflow_states WHERE entity_id = 'paid'"
    )
    assert value(conn, letter) == LONG.encode()


def test_parents_and_children_are_named(conn: Conn, dsn: str) -> None:
    children = deployed(conn, Pipeline("children", data=dict, initial="NEW", final={"DONE"}))
    parents: Pipeline[Any] = Pipeline("parents", data=dict, initial="NEW", final={"DONE"}, cancelled="CANCELLED")

    @parents.stage("split", on="NEW", to="WAITING")
    async def split(run: Run[Any]) -> Any:
        run.spawn(children, "child", {})
        return WaitForChildren(to="DONE")

    parents.allow("WAITING", to="DONE")
    deployed(conn, parents).submit(conn, "parent", {})
    drain(parents, dsn)
    assert parents.erase(conn, "parent").relatives == [("children", "child")]


class Person(BaseModel):
    name: str = "nobody"


def test_data_that_was_erased_is_none_and_not_what_its_type_makes_of_nothing(conn: Conn, dsn: str) -> None:
    children = deployed(conn, Pipeline("children", data=Person, initial="DONE", final={"DONE"}, version=2))
    parents: Pipeline[Any] = Pipeline("parents", data=dict, initial="NEW", final={"DONE"})
    seen: list[Any] = []

    @parents.stage("split", on="NEW", to="SPLIT")
    async def split(run: Run[Any]) -> None:
        run.spawn(children, "child", {"name": MARK})

    @parents.stage("look", on="LOOK", to="DONE")
    async def look(run: Run[Any]) -> None:
        seen.extend((child.entity_id, child.data) for child in await run.children(children))

    parents.allow("SPLIT", to="LOOK")
    deployed(conn, parents).submit(conn, "parent", {})
    drain(parents, dsn)
    children.erase(conn, "child")
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'LOOK' WHERE entity_id = 'parent'")
    drain(parents, dsn)
    found = children.get(conn, "child")
    assert found is not None
    assert (seen, found.data) == ([("child", None)], None)


def test_what_has_not_ended_and_can_not_be_cancelled_is_refused(conn: Conn) -> None:
    pipeline = deployed(conn, Pipeline("p", data=dict, initial="NEW", final={"DONE"}))
    pipeline.allow("NEW", to="DONE")
    pipeline.submit(conn, "a", {"who": MARK})
    with pytest.raises(NotCancellable):
        pipeline.erase(conn, "a")
    assert marked(conn) == {"workflow_states.metadata"}
    with pytest.raises(NoWorkflow):
        pipeline.erase(conn, "b")


def test_what_a_running_attempt_returns_after_it_changes_nothing(conn: Conn, dsn: str) -> None:
    seen: list[Any] = []
    pipeline: Pipeline[Any] = Pipeline("p", data=dict, initial="NEW", final={"DONE"}, cancelled="CANCELLED")

    @pipeline.stage("work", on="NEW", to="DONE")
    async def work(run: Run[Any]) -> Any:
        seen.append(await asyncio.to_thread(pipeline.erase, conn, "a"))
        run.publish("t", {"who": MARK})
        return {"who": MARK}

    deployed(conn, pipeline).submit(conn, "a", {"who": MARK})
    drain(pipeline, dsn)
    assert [erased.status for erased in seen] == ["CANCELLED"]
    assert status_of(conn, "a") == "CANCELLED"
    assert marked(conn) == set()


def test_it_is_part_of_the_caller_s_transaction_sync_and_async(played: Played) -> None:
    conn, pipeline = played
    before = marked(conn)
    with conn.transaction(force_rollback=True):
        pipeline.erase(conn, "done")
    assert marked(conn) == before

    async def erase() -> Any:
        async with await psycopg.AsyncConnection.connect(played.conn.info.dsn, autocommit=True) as conn:
            return await pipeline.erase(conn, "done")

    assert asyncio.run(erase()).entity_id == "done"


def test_only_the_owner_may_and_history_stays_closed_to_all(played: Played) -> None:
    conn, pipeline = played
    for statement in (
        "UPDATE outbox.state_changes SET reason = NULL",
        "UPDATE outbox.state_changes SET reason = 'another'",
    ):
        with pytest.raises(psycopg.Error) as caught:
            conn.execute(statement.encode())
        assert caught.value.sqlstate == "OB005"
    conn.execute("SET outbox.erasing = 'on'")
    for change in (
        "reason = 'another'",
        "actor = 'tom', reason = NULL",
        "at = now(), reason = NULL",
        "to_status = 'DONE', reason = NULL",
    ):
        with pytest.raises(psycopg.Error) as caught:
            conn.execute(f"UPDATE outbox.state_changes SET {change} WHERE to_status <> 'DONE'".encode())
        assert caught.value.sqlstate == "OB005"
    conn.execute("RESET outbox.erasing")
    pipeline.erase(conn, "done")
    with pytest.raises(psycopg.Error):
        conn.execute("UPDATE outbox.state_changes SET reason = NULL")


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_does_not_see_what_others_write_is_refused(played: Played, isolation: str) -> None:
    conn, pipeline = played
    conn.execute(f"SET default_transaction_isolation = '{isolation}'".encode())
    with pytest.raises(psycopg.errors.InvalidTransactionState, match=isolation):
        pipeline.erase(conn, "done")


# On the command line


def test_the_command_asks_first_and_tells_what_it_did(played: Played) -> None:
    conn, outbox = played.conn, Outbox(played.conn.info.dsn)
    refused = outbox("erase", "done", input="n\n", code=1)
    assert "Erase done of pipeline cases, which is in DONE, for good?" in refused.err
    assert status_of(conn, "done") == "DONE"
    assert not value(conn, "SELECT metadata ? '$erased' FROM outbox.workflow_states WHERE entity_id = 'done'")
    said = outbox("erase", "done", "--yes", "--by", "tom", "--reason", "their wish").out
    assert "done of pipeline cases is erased. It is in DONE" in said
    assert "gone: parked messages: 1" in said
    assert trail(conn, "done")[-1] == ("DONE", "tom", "erased: their wish")
    told = outbox("erase", "ask", "--yes", "--json").json
    assert (told["status"], told["parked_deliveries"]) == ("CANCELLED", 1)
    assert "erased" in outbox("show", "done").out
