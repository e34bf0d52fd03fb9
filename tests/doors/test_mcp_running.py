"""A pipeline as a tool: a call starts a workflow, tells its progress, and returns its data. The workflow needs no call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from mcp import Client
from pydantic import BaseModel, RootModel

import outbox
from apps.mcp_pipelines import drafts
from kit.pipelines import deployed, drain, status_of, value
from kit.servers import DEADLINE, Process, wait_for
from kit.talking import ask, ask_in_vain, said, talk
from outbox import Pipeline, SettingsError
from outbox.mcp import mcp_server

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
WORKER = ("worker", "--app", "apps.mcp_pipelines:drafts")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mcp_server.__kwdefaults__, "statement_timeout", 60.0)
    monkeypatch.setitem(mcp_server.__kwdefaults__, "wait", DEADLINE)


def writer(dsn: str, **options: Any) -> Any:
    return mcp_server(dsn, tools={"write_draft": drafts}, by="helper", **options)


def test_its_arguments_are_the_fields_of_the_data(dsn: str) -> None:
    async def tools(client: Client) -> dict[str, Any]:
        return {tool.name: tool for tool in (await client.list_tools()).tools}

    tool = talk(writer(dsn), tools)["write_draft"]
    assert set(tool.input_schema["properties"]) == {"topic", "words", "text", "entity_id"}
    assert tool.input_schema["required"] == ["topic"]
    assert tool.input_schema["properties"]["topic"]["description"] == "What it is about."
    assert "Writes a draft on a topic." in tool.description
    assert not tool.annotations.read_only_hint


def test_a_call_starts_a_workflow_and_returns_its_data_when_it_has_ended(conn: Conn, dsn: str, spawn: Spawn) -> None:
    deployed(conn, drafts)
    told: list[Any] = []

    async def call(client: Client) -> Any:
        async def progress(done: float, total: float | None, message: str | None) -> None:
            told.append(json.loads(message or ""))
            if len(told) == 1:  # not before: it may have ended before the first look
                await asyncio.to_thread(spawn, *WORKER)

        result = await client.call_tool("write_draft", {"topic": "tea", "words": 2}, progress_callback=progress)
        return json.loads(result.content[0].text)  # type: ignore[union-attr]

    made = talk(writer(dsn), call)
    assert (made["status"], made["ended"], made["metadata"]["text"]) == ("DONE", True, "tea tea ")
    assert {each["entity_id"] for each in told} == {made["entity_id"]}
    assert told[0]["status"] == "NEW"
    (actor,) = conn.execute("SELECT actor FROM outbox.state_changes WHERE version = 1").fetchone() or ("",)
    assert actor == "helper"


def test_a_second_call_with_the_same_id_waits_for_the_first_run(conn: Conn, dsn: str) -> None:
    deployed(conn, drafts)
    server = writer(dsn, wait=0.0)
    first = ask(server, "write_draft", topic="tea", entity_id="d1")
    assert (first["ended"], first["status"], first["entity_id"]) == (False, "NEW", "d1")
    assert "Call this tool again with this entity_id" in first["what_now"]
    drain(drafts, dsn)
    again = ask(server, "write_draft", topic="coffee", entity_id="d1")
    assert (again["metadata"]["topic"], again["created"], first["created"]) == ("tea", False, True)
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 1
    ask(server, "write_draft", topic="tea")
    ask(server, "write_draft", topic="tea")
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 3, "without an id, each call is a run"


def test_a_run_that_is_dead_is_an_error_that_says_why(conn: Conn, dsn: str) -> None:
    deployed(conn, drafts)
    server = writer(dsn, wait=0.0)
    ask(server, "write_draft", topic="nothing", entity_id="d1")
    drain(drafts, dsn)
    said_why = ask_in_vain(server, "write_draft", topic="nothing", entity_id="d1")
    assert "its job is dead" in said_why
    assert "there is nothing to write about" in said_why


def test_a_run_that_asks_a_person_ends_after_the_answer(conn: Conn, dsn: str, spawn: Spawn) -> None:
    deployed(conn, drafts)
    spawn(*WORKER)
    told: list[str] = []

    async def call(client: Client) -> Any:
        async def progress(done: float, total: float | None, message: str | None) -> None:
            told.append(message or "")
            if "Keep it?" in (message or ""):
                outbox.approve(conn, "drafts", "d1", by="sarah")

        result = await client.call_tool(
            "write_draft", {"topic": "risky", "entity_id": "d1"}, progress_callback=progress
        )
        return json.loads(result.content[0].text)  # type: ignore[union-attr]

    assert talk(writer(dsn), call)["status"] == "DONE"
    assert any("Keep it?" in each for each in told)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "topic"),
        ({"topic": 7}, "topic"),
        ({"topic": "tea", "wrods": 5}, "write_draft has no argument 'wrods'"),
        ({"topic": "tea", "words": 0}, "words"),
        ({"topic": "tea", "words": "many"}, "words"),
        ({"topic": "a\x00b"}, "NUL"),
        ({"topic": "tea", "entity_id": ""}, "is empty"),
        ({"topic": "tea", "entity_id": "x" * 600}, "the limit is 512"),
        ({"topic": "tea", "entity_id": ["x"]}, "entity_id"),
    ],
)
def test_arguments_that_do_not_fit_start_nothing(conn: Conn, dsn: str, arguments: dict[str, Any], words: str) -> None:
    deployed(conn, drafts)
    assert words in ask_in_vain(writer(dsn), "write_draft", **arguments)
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 0


def test_a_pipeline_that_is_not_deployed_is_said(conn: Conn, dsn: str) -> None:
    assert "is not deployed here" in ask_in_vain(writer(dsn), "write_draft", topic="tea")


def test_a_call_that_is_cancelled_leaves_its_workflow_to_the_workers(conn: Conn, dsn: str) -> None:
    deployed(conn, drafts)

    async def call(client: Client) -> None:
        calling = asyncio.ensure_future(client.call_tool("write_draft", {"topic": "tea", "entity_id": "d1"}))
        while not await asyncio.to_thread(lambda: value(conn, "SELECT EXISTS (SELECT FROM outbox.workflow_states)")):
            await asyncio.sleep(0.01)
        calling.cancel()
        assert (await said(client, "why", entity_id="d1"))["status"] == "NEW"

    talk(writer(dsn), call, mode="legacy")
    drain(drafts, dsn)
    assert status_of(conn, "d1") == "DONE"


def test_many_calls_at_once_each_have_their_result(conn: Conn, dsn: str, spawn: Spawn) -> None:
    deployed(conn, drafts)
    spawn(*WORKER)

    async def call(client: Client) -> list[Any]:
        return await asyncio.gather(*(said(client, "write_draft", topic=f"t{n}", words=1) for n in range(20)))

    assert {made["metadata"]["text"] for made in talk(writer(dsn), call)} == {f"t{n} " for n in range(20)}


class HasEntity(BaseModel):
    entity_id: str
    child: HasEntity | None = None


def test_a_model_that_refers_to_itself_and_has_an_entity_id_is_a_tool_too(conn: Conn, dsn: str) -> None:
    odd: Pipeline[Any] = Pipeline("odd: name/2", data=HasEntity, initial="NEW", final={"DONE"})
    odd.allow("NEW", to="DONE")
    deployed(conn, odd)
    server = mcp_server(dsn, tools={"odd": odd}, wait=0.0)
    made = ask(server, "odd", entity_id="mine", child={"entity_id": "inner"}, _entity_id="d1")
    assert made["_entity_id"] == "d1"
    found = odd.get(conn, "d1")
    assert found is not None
    assert found.data.child.entity_id == "inner"


def test_what_can_be_no_tool_is_refused_at_the_start(dsn: str) -> None:
    class Numbers(RootModel[list[int]]):
        pass

    numbers: Pipeline[Any] = Pipeline("numbers", data=Numbers, initial="NEW", final={"DONE"})
    for tools, words in [
        ({"why": drafts}, "is the name of another tool"),
        ({"my tool": drafts}, "is no name of a tool"),
        ({"": drafts}, "is no name of a tool"),
        ({"numbers": numbers}, "can't be a tool"),
    ]:
        with pytest.raises(SettingsError, match=words):
            mcp_server(dsn, tools=tools)


def test_a_result_that_is_large_is_cut_and_read_with_show_workflow(conn: Conn, dsn: str, spawn: Spawn) -> None:
    deployed(conn, drafts)
    spawn(*WORKER)

    async def call(client: Client) -> tuple[Any, str]:
        made = await said(client, "write_draft", topic="tea", words=10_000, entity_id="d1")
        whole, offset = "", 0
        while offset is not None:
            part = await said(client, "show_workflow", entity_id="d1", at=made["cut"][0]["at"], offset=offset)
            whole, offset = whole + part["text"], part["next_offset"]
        return made, whole

    made, whole = talk(writer(dsn), call)
    assert made["cut"][0]["at"] == "/metadata/text"
    assert "show_workflow" in made["how_to_read_what_is_cut"]
    assert whole == "tea " * 10_000


def test_a_worker_that_is_killed_meanwhile_costs_the_call_only_time(conn: Conn, dsn: str, spawn: Spawn) -> None:
    deployed(conn, drafts)
    first = spawn(*WORKER, "--lease", "2")

    async def call(client: Client) -> Any:
        calling = asyncio.ensure_future(said(client, "write_draft", topic="tea", words=1))
        await asyncio.to_thread(
            wait_for, lambda: value(conn, "SELECT count(*) = 1 FROM outbox.workflow_states"), what="it has started"
        )
        first.kill9()
        spawn(*WORKER, "--lease", "2")
        return await calling

    assert talk(writer(dsn), call)["status"] == "DONE"
