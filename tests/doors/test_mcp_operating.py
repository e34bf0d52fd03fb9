"""What is done by MCP is done once, in a name that the history keeps, and by nobody who may only look."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from mcp import Client
from pydantic import BaseModel, ConfigDict, Field

from apps.cli import orders, posts, tickets
from kit.pipelines import deployed, drain, status_of, value
from kit.roles import dsn_as, forget_groups
from kit.talking import ask, ask_in_vain, said, talk
from outbox import InvalidInput, Pipeline, Run, WaitForApproval, WaitForChildren
from outbox.database import migrations
from outbox.mcp import mcp_server

Conn = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mcp_server.__kwdefaults__, "statement_timeout", 60.0)


@pytest.fixture
def logins(conn: Conn, dsn: str, admin_dsn: str) -> Iterator[tuple[str, str]]:
    """The DSNs of a login that may look, and of one that may operate."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        forget_groups(admin)
        migrations.make_roles(admin)
        for group in ("viewer", "operator"):
            admin.execute(f"CREATE ROLE login_{group} LOGIN IN ROLE outbox_{group}".encode())
        admin.execute("GRANT outbox_submitter TO login_operator")
        yield dsn_as("login_viewer", dsn), dsn_as("login_operator", dsn)
        forget_groups(admin)


def actor(conn: Conn, entity: str) -> Any:
    return value(
        conn, "SELECT c.actor || coalesce(': ' || c.reason, '') FROM outbox.state_changes AS c "
        "JOIN outbox.workflow_states AS w ON w.id = c.workflow_id WHERE w.entity_id = %s ORDER BY c.version DESC LIMIT 1", entity,
    )  # fmt: skip


def test_a_workflow_starts_once_in_the_name_of_who_operates(conn: Conn, dsn: str) -> None:
    deployed(conn, posts)
    server = mcp_server(dsn, operate=True, by="helper", pipelines=[posts])
    asked = {"pipeline": "posts", "entity_id": "p1", "data": {"content": "hi"}, "reason": "asked to"}
    assert ask(server, "submit_workflow", **asked) == {
        "pipeline": "posts", "entity_id": "p1", "status": "RECEIVED", "created": True,
    }  # fmt: skip
    assert ask(server, "submit_workflow", **asked)["created"] is False
    assert actor(conn, "p1") == "helper: asked to"


def test_data_is_validated_by_the_model_or_else_by_the_database(conn: Conn, dsn: str) -> None:
    deployed(conn, tickets)
    strict: Pipeline[Any] = Pipeline("strict", data=Named, strict=True, initial="NEW", final={"DONE"})
    strict.allow("NEW", to="DONE")
    deployed(conn, strict)
    known = mcp_server(dsn, operate=True, pipelines=[tickets])
    assert "subject" in ask_in_vain(known, "submit_workflow", pipeline="tickets", entity_id="t", data={})
    assert "colour" in ask_in_vain(
        known, "submit_workflow", pipeline="tickets", entity_id="t", data={"subject": "s", "colour": "red"}
    )
    wrong = ask_in_vain(known, "submit_workflow", pipeline="strict", entity_id="t", data={"name": 7})
    assert "name" in wrong
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 0
    assert ask(known, "submit_workflow", pipeline="strict", entity_id="t", data={"name": "n"})["created"]
    assert 'unknown pipeline "shops"' in ask_in_vain(known, "submit_workflow", pipeline="shops", entity_id="t", data={})


class Named(BaseModel):
    name: str


class Aliased(BaseModel):
    model_config = ConfigDict(extra="forbid")
    given_name: str = Field(alias="givenName")
    tags: set[str] = set()


def test_data_of_a_newer_version_with_aliases_is_read_as_such(conn: Conn, dsn: str) -> None:
    aliased: Pipeline[Any] = Pipeline("aliased", data=Aliased, version=2, plain=2, initial="NEW", final={"DONE"})
    aliased.migrate_data(1, lambda old: {"given_name": old["name"]})
    aliased.allow("NEW", to="DONE")
    deployed(conn, aliased)
    server = mcp_server(dsn, operate=True, pipelines=[aliased])
    for entity, name in (("a", "given_name"), ("b", "givenName")):
        data = {name: "Ada", "tags": ["x"]}
        assert ask(server, "submit_workflow", pipeline="aliased", entity_id=entity, data=data)["created"]
        found = aliased.get(conn, entity)
        assert found is not None
        assert found.data.given_name == "Ada"


def test_a_signal_moves_who_waits_for_it_once(conn: Conn, dsn: str) -> None:
    deployed(conn, orders)
    orders.submit(conn, "o1", {"total": 5})
    drain(orders, dsn)
    server = mcp_server(dsn, operate=True, by="helper")
    sent = ask(server, "send_signal", entity_id="o1", name="payment", payload={"id": 7}, id="pay_7")
    assert (sent["status"], sent["taken"]) == ("PAID", True)
    assert ask(server, "send_signal", entity_id="o1", name="payment", id="pay_7")["created"] is False
    assert str(actor(conn, "o1")).startswith("helper")


def test_a_dead_job_runs_again_and_a_living_one_is_left(shop: Conn, dsn: str) -> None:
    server = mcp_server(dsn, operate=True, by="helper")
    assert ask(server, "retry_dead_job", entity_id="broken", reason="fixed")["retried"]
    assert "has no dead job" in ask_in_vain(server, "retry_dead_job", entity_id="broken")
    told = shop.execute("SELECT actor, reason FROM outbox.actions").fetchall()
    assert told == [("helper", "fixed")]


def test_stages_are_paused_and_resumed_by_name(shop: Conn, dsn: str) -> None:
    server = mcp_server(dsn, operate=True, by="helper")
    assert ask(server, "pause_stage", stage="enrich", reason="upstream is down")["was_paused"] is False
    assert ask(server, "pause_stage", stage="posts.enrich")["was_paused"] is True
    assert "upstream is down" in ask(server, "why", entity_id="new")["sentence"]
    assert ask(server, "resume_stage", stage="enrich")["was_paused"] is True
    assert "did you mean" in ask_in_vain(server, "pause_stage", stage="enrichh")
    assert {by for (by,) in shop.execute("SELECT actor FROM outbox.actions")} == {"helper"}


def test_a_viewer_may_look_and_an_operator_may_operate(shop: Conn, dsn: str, logins: tuple[str, str]) -> None:
    viewer, operator = logins
    both = mcp_server(viewer, operate_dsn=operator, operate=True, decide_as="ann", by="helper")

    async def all_looks(client: Client) -> None:
        await said(client, "status")
        await said(client, "status", pipeline="posts")
        await said(client, "list_workflows")
        await said(client, "show_workflow", entity_id="broken")
        await said(client, "why", entity_id="broken")
        await said(client, "list_dead_jobs")
        await said(client, "list_dead_jobs", by_kind=True)
        await said(client, "list_questions")

    talk(both, all_looks)
    assert ask(both, "submit_workflow", pipeline="posts", entity_id="p9", data={})["created"]
    assert ask(both, "retry_dead_job", entity_id="broken")["retried"]
    ask(both, "pause_stage", stage="enrich")
    ask(both, "resume_stage", stage="enrich")
    ask(both, "send_signal", entity_id="new", name="hurry")
    only = mcp_server(viewer, operate=True)
    assert "may only look" in ask_in_vain(only, "pause_stage", stage="enrich")
    assert value(shop, "SELECT count(*) FROM outbox.pauses") == 0


def test_what_is_held_by_another_transaction_is_left_as_it_is(shop: Conn, dsn: str, connect: Any) -> None:
    server = mcp_server(dsn, operate=True, statement_timeout=0.3)
    other = connect(autocommit=False)
    other.execute("SELECT FROM outbox.workflow_states FOR UPDATE")
    assert "nothing was changed" in ask_in_vain(server, "retry_dead_job", entity_id="broken")
    other.rollback()
    assert ask(server, "retry_dead_job", entity_id="broken")["retried"]


@pytest.mark.parametrize("names", [{"by": ""}, {"by": "a\0"}, {"decide_as": "x" * 10_000}])
def test_a_name_that_cannot_be_kept_is_refused_at_the_start(dsn: str, names: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        mcp_server(dsn, **names)  # type: ignore[arg-type]


# Deciding.


def reviewed() -> Pipeline[Any]:
    made: Pipeline[Any] = Pipeline("reviewed", initial="NEW", final={"APPROVED", "REJECTED"})
    made.stage("ask", on="NEW", to="WAITING")(lambda run: WaitForApproval("Send it?", status="WAITING"))
    made.allow("WAITING", to={"APPROVED", "REJECTED"})
    return made


def test_a_question_is_read_and_answered_in_the_name_of_who_decides(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, reviewed())
    pipeline.submit(conn, "r1", {"text": "hello"}, by="eva")
    drain(pipeline, dsn)
    server = mcp_server(dsn, decide_as="sarah", by="helper")
    (asked,) = ask(server, "list_questions")["questions"]
    assert (asked["question"], asked["data"], asked["asked_by"]) == ("Send it?", {"text": "hello"}, "eva")
    answer = {"question": asked["id"], "decision": "approve", "shown": asked["shown"], "reason": "harmless"}
    assert "is not an option" in ask_in_vain(server, "decide", **{**answer, "decision": "maybe"})
    assert ask(server, "decide", **answer)["status"] == "APPROVED"
    assert ask(server, "decide", **answer)["status"] == "APPROVED", "who repeats an answer is told the same"
    assert "too late" in ask_in_vain(server, "decide", **{**answer, "decision": "reject"})
    shown = ask(server, "show_question", question=asked["id"])
    assert (shown["decided_by"], shown["reason"]) == ("sarah", "harmless")
    assert actor(conn, "r1") == "sarah: harmless"


@pytest.mark.parametrize("asker", ["sarah", "helper"])
def test_nobody_decides_what_they_have_asked(conn: Conn, dsn: str, asker: str) -> None:
    """Neither in the name that has asked, nor in another name of the same server."""
    pipeline = deployed(conn, reviewed())
    if asker == "helper":
        ask(mcp_server(dsn, operate=True, by="helper"), "submit_workflow", pipeline="reviewed", entity_id="r1", data={})
    else:
        pipeline.submit(conn, "r1", {}, by=asker)
    drain(pipeline, dsn)
    server = mcp_server(dsn, operate=True, by="helper", decide_as="sarah")
    (asked,) = ask(server, "list_questions")["questions"]
    answer = {"question": asked["id"], "decision": "approve", "shown": asked["shown"]}
    assert f'"{asker}" has asked this question' in ask_in_vain(server, "decide", **answer)
    assert status_of(conn, "r1") == "WAITING"
    assert ask(mcp_server(dsn, decide_as="ben"), "decide", **answer)["status"] == "APPROVED"


def test_a_decision_on_data_that_has_changed_is_refused_until_it_is_read_again(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, reviewed())
    pipeline.submit(conn, "r1", {"text": "one"}, by="eva")
    drain(pipeline, dsn)
    server = mcp_server(dsn, decide_as="sarah")
    (asked,) = ask(server, "list_questions")["questions"]
    conn.execute('UPDATE outbox.workflow_states SET metadata = \'{"text": "two"}\'')
    answer = {"question": asked["id"], "decision": "approve"}
    assert "the data has changed" in ask_in_vain(server, "decide", **answer, shown=asked["shown"])
    again = ask(server, "show_question", question=asked["id"])
    assert (again["data"], again["changed"]) == ({"text": "two"}, True)
    assert ask(server, "decide", **answer, shown=again["shown"])["status"] == "APPROVED"


def test_of_two_deciders_at_once_one_wins_and_the_other_is_told_who(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, reviewed())
    pipeline.submit(conn, "r1", {}, by="eva")
    drain(pipeline, dsn)
    (asked,) = ask(mcp_server(dsn), "list_questions")["questions"]

    async def both() -> list[Any]:
        async def one(name: str, decision: str) -> Any:
            async with Client(mcp_server(dsn, decide_as=name)) as client:
                return await client.call_tool(
                    "decide", {"question": asked["id"], "decision": decision, "shown": asked["shown"]}
                )

        return list(await asyncio.gather(one("ann", "approve"), one("ben", "reject")))

    results = asyncio.run(both())
    (lost,) = [result for result in results if result.is_error]
    winner = "ben" if lost is results[0] else "ann"
    assert f"by {winner} at" in lost.content[0].text


def test_questions_are_listed_page_by_page_and_large_data_is_read_to_its_end(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, reviewed())
    texts = {f"r{number}": f"{number}" * 30_000 for number in range(3)}
    pipeline.submit_many(conn, ((entity, {"text": text}) for entity, text in texts.items()), by="eva")
    drain(pipeline, dsn)
    server = mcp_server(dsn)

    async def read(client: Client) -> dict[str, str]:
        found: dict[str, str] = {}
        after = None
        while True:
            page = await said(client, "list_questions", limit=2, after=after)
            for asked in page["questions"]:
                at = {"question": asked["id"], "at": "/data/text"}
                whole, offset = "", 0
                while offset is not None:
                    part = await said(client, "show_question", **at, offset=offset)
                    whole, offset = whole + part["text"], part["next_offset"]
                found[asked["entity_id"]] = whole
            if (after := page["after"]) is None:
                return found

    assert talk(server, read) == texts


def test_nobody_decides_what_a_child_of_their_workflow_has_asked(conn: Conn, dsn: str) -> None:
    child = deployed(conn, reviewed())
    parents: Pipeline[Any] = Pipeline("parents", initial="NEW", final={"DONE"})

    def spawn(run: Run[Any]) -> WaitForChildren[Any]:
        run.spawn(child, "r1", {})
        return WaitForChildren(to="DONE", status="WAITING")

    parents.stage("spawn", on="NEW", to={"WAITING", "DONE"})(spawn)
    parents.allow("WAITING", to="DONE")
    deployed(conn, parents)
    server = mcp_server(dsn, operate=True, by="helper", decide_as="sarah")
    ask(server, "submit_workflow", pipeline="parents", entity_id="p1", data={})
    drain([parents, child], dsn)
    (asked,) = ask(server, "list_questions")["questions"]
    answer = {"question": asked["id"], "decision": "approve", "shown": asked["shown"]}
    assert '"helper" has asked this question' in ask_in_vain(server, "decide", **answer)
    assert ask(mcp_server(dsn, decide_as="ben"), "decide", **answer)["status"] == "APPROVED"


def test_who_a_question_names_as_its_asker_is_the_only_one(conn: Conn, dsn: str) -> None:
    """The program that has submitted it for somebody may decide it; the person that it names may not."""
    pipeline: Pipeline[Any] = Pipeline("named", initial="NEW", final={"APPROVED", "REJECTED"})
    pipeline.stage("ask", on="NEW", to="WAITING")(
        lambda run: WaitForApproval("Send it?", status="WAITING", asked_by="eva")
    )
    pipeline.allow("WAITING", to={"APPROVED", "REJECTED"})
    deployed(conn, pipeline)
    pipeline.submit(conn, "n1", {}, by="shop")
    drain(pipeline, dsn)
    (asked,) = ask(mcp_server(dsn), "list_questions")["questions"]
    answer = {"question": asked["id"], "decision": "approve", "shown": asked["shown"]}
    assert '"eva" has asked' in ask_in_vain(mcp_server(dsn, decide_as="eva"), "decide", **answer)
    assert ask(mcp_server(dsn, decide_as="shop"), "decide", **answer)["status"] == "APPROVED"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"text": "a\0b"}, "NUL"),
        ({"text": "\ud800"}, "surrogate"),
        ({"text": "x" * 33 * 2**20}, "the limit is"),
        ({"deep": json.loads("[" * 200 + "]" * 200)}, "nested"),
        ("no object", "dict"),
    ],
    ids=["nul", "surrogate", "large", "deep", "text"],
)
def test_data_that_cannot_be_stored_is_refused_and_starts_nothing(conn: Conn, dsn: str, data: Any, words: str) -> None:
    deployed(conn, reviewed())
    server = mcp_server(dsn, operate=True)
    assert words in ask_in_vain(server, "submit_workflow", pipeline="reviewed", entity_id="e", data=data)
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 0
