"""What is stored of a graph: what it may be, that it comes back as it was, what it costs, and when it is gone."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from collections import deque
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, NamedTuple, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Interrupt, Overwrite, Send, interrupt
from pydantic import BaseModel, Field, RootModel, SecretStr

import outbox
from kit.pipelines import QUICK, deployed, drain, drain_all, run_one, status_of, value
from outbox import Pipeline, Run
from outbox.agents.langgraph import NodeError, Thread, graph_stage, journal
from outbox.agents.langgraph.encoding import Encoding, Unstorable, dumps
from outbox.agents.langgraph.journal import Journal
from outbox.agents.langgraph.known import OF_LANGGRAPH, known_to
from outbox.agents.langgraph.saver import Saver
from outbox.engine.retention import SQL as RETENTION
from outbox.errors import AgentChanged

Conn = psycopg.Connection[Any]


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: float


@dataclasses.dataclass
class Part:
    name: str
    made: datetime
    length: int = dataclasses.field(init=False, default=0)


class Item(BaseModel):
    name: str = Field(alias="Name")
    price: Decimal = Decimal(1)
    tags: set[str] = set()


class Items(RootModel[list[int]]):
    pass


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    item: Item | None
    colour: dict[str, list[Colour]]
    point: Point
    part: Part
    items: Items


builder = StateGraph(State)
builder.add_node("a", lambda state: {})
builder.add_edge(START, "a")
encoding = Encoding(known_to(builder.compile()))
MOMENT = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)

VALUES: list[Any] = [
    None, True, 1, 1.0, -0.0, 1e22, 2**80, "", "a\0b", "\ud800", "ünï ☃", [], [[]], {}, {"b": 1, "a": 2}, {"$": 1},
    {1: "one", (1, 2): "pair", None: 0}, (1, [2]), {1, 2}, frozenset("ab"), deque([1, 2], maxlen=3), b"\0\xff",
    bytearray(b"x"), MOMENT, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1), date(2026, 1, 2), time(1, 2, 3),
    timedelta(days=-1, microseconds=7), Decimal("1.10"), UUID(int=7), ZoneInfo("UTC"), Colour.RED, Point(1, 2.5),
    Items([1, 2]), Item(Name="a", tags={"x"}), HumanMessage("hi", id="1"), Send("a", {"x": Point(1, 2)}),
    AIMessage("", tool_calls=[{"name": "f", "args": {"z": 1, "a": 2}, "id": "c"}], response_metadata={"x": 1.0}),
    ToolMessage("done", tool_call_id="c", artifact={"at": MOMENT}), Overwrite([1]), Command(goto="a", update={"x": 1}),
]  # fmt: skip


@pytest.mark.parametrize("given", VALUES, ids=lambda given: type(given).__name__)
def test_a_value_comes_back_as_it_was(given: Any) -> None:
    import json

    tree = encoding.encode(given)
    encoding.check(tree)
    text = dumps([tree])
    text.encode()
    (read,) = json.loads(text)
    found = encoding.decode(read)
    assert (type(found), found) == (type(given), given)
    assert repr(found) == repr(given)
    if isinstance(given, BaseModel):
        assert found.model_fields_set == given.model_fields_set


def test_times_interrupts_and_errors_come_back() -> None:
    found = encoding.decode(encoding.encode(MOMENT))
    assert (found.tzinfo.key, found.fold, found.utcoffset()) == ("Europe/Berlin", 1, timedelta(hours=1))
    asked = encoding.decode(encoding.encode(Interrupt({"q": (1,)}, "id1", response_schema={"type": "object"})))
    assert (asked.value, asked.id, asked.response_schema) == ({"q": (1,)}, "id1", {"type": "object"})
    error = encoding.decode(encoding.encode(ValueError("bad\0")))
    assert (type(error), error.kind, error.text) == (NodeError, "ValueError", "bad\ufffd")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    part = Part("a", MOMENT)
    part.length = 7
    assert encoding.decode(encoding.encode(part)) == part


class Unknown(BaseModel):
    pass


class Hidden(BaseModel):
    key: SecretStr = SecretStr("secret")


@pytest.mark.parametrize("given", [object(), Unknown(), Hidden(), {"a": [lambda: 1]}, type, OSError, deque, 1j])
def test_what_has_no_form_is_refused(given: Any) -> None:
    with pytest.raises(Unstorable):
        encoding.encode(given)


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(Unstorable, match="contains itself"):
        encoding.encode(loop)


@pytest.mark.parametrize(
    "tree",
    [
        {"$": "os:system", "value": "touch /tmp/x"},
        {"$": "builtins:eval", "value": "1"},
        {"$": "langgraph.types:Command", "value": {"nothing": 1}},
        {"$": "tests.agents.test_graph_state:Unknown", "value": {}},
        {"$": f"{__name__}:Colour", "value": "blue"},
        {"$": "pickle", "value": "gASVBQAAAAAAAABLAS4="},
    ],
)
def test_nothing_in_the_database_chooses_what_is_called(tree: Any) -> None:
    with pytest.raises(AgentChanged, match="the stored state has a"):
        encoding.decode(tree)


class Memory:
    async def append(self, operation: Any, where: str) -> None:
        pass


def test_the_checkpointer_does_what_checkpointers_must(conn: Conn, dsn: str) -> None:
    """LangGraph's own tests, on a checkpointer whose journal is that of a real attempt."""
    reports: list[Any] = []

    async def handler(run: Run[Any]) -> None:
        journals: list[Journal] = []

        @checkpointer_test(name="outbox")
        async def saver() -> Any:
            journals.append(Journal(run))
            journals[-1]._entries = 1000 * len(journals)
            yield Saver(Encoding(OF_LANGGRAPH), journals[-1])

        reports.append(await validate(saver))
        for each in journals:
            await each.close()

    run_one(conn, dsn, handler, timeout=60)
    results = reports[0].results
    base = {"put", "put_writes", "get_tuple", "list", "delete_thread"}
    assert {name: result.failures for name, result in results.items() if name in base} == {name: [] for name in base}
    assert sum(result.tests_passed for result in results.values()) >= 50


class Talk(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    turns: int


def extended(state: Any, writes: Any) -> Any:
    return [*state, *(message for write in writes for message in write)]


class Data(BaseModel):
    said: int = 0
    thread: Thread = Thread()


def talking(channel: Any = None, turns: int = 1, ask: bool = True, size: int = 1_000) -> Pipeline[Any]:
    """A conversation: each turn says something, and asks for the next one."""
    schema: Any = Talk
    if channel is not None:
        schema = TypedDict("schema", {"messages": channel, "turns": int}, total=False)  # noqa: UP013

    def say(state: Any) -> Any:
        number = state.get("turns", 0)
        return {"turns": number + 1, "messages": [AIMessage(f"{number:05}" * (size // 5), id=str(number))]}

    def go_on(state: Any) -> Any:
        if ask:
            interrupt("next?")
        return {}

    graph = StateGraph(schema)
    graph.add_node("say", say)
    graph.add_node("go_on", go_on)
    graph.add_edge(START, "say")
    graph.add_edge("say", "go_on")
    graph.add_conditional_edges("go_on", lambda state: "say" if state["turns"] < turns else "__end__")
    pipeline: Pipeline[Any] = Pipeline("talk", data=Data, initial="NEW", final={"DONE"})

    @graph_stage(
        pipeline, graph.compile(name="talk"), on="NEW", to="DONE", input=lambda data: {"turns": 0}, retry=QUICK,
        config={"recursion_limit": 1_000},
    )  # fmt: skip
    def ended(run: Run[Data], output: Any) -> Data:
        return run.data.model_copy(update={"said": sum(len(each.content) for each in output["messages"])})

    return pipeline


BYTES = """
    SELECT (SELECT coalesce(sum(length(result #>> '{}')), 0) FROM outbox.checkpoints),
           (SELECT coalesce(sum(length(content)), 0) FROM outbox.blob_parts)
"""


@pytest.mark.parametrize(
    "channel", [None, Annotated[list[AnyMessage], DeltaChannel(extended)]], ids=["list", "changes"]
)
def test_a_long_conversation_costs_its_length_within_a_work(conn: Conn, dsn: str, channel: Any) -> None:
    turns = 100
    pipeline = deployed(conn, talking(channel, turns, ask=False))
    pipeline.submit(conn, "a", Data())
    drain(pipeline, dsn)
    found = pipeline.get(conn, "a")
    assert found is not None
    assert (found.status, found.data.said) == ("DONE", turns * 1_000)
    (entries, parts) = conn.execute(BYTES).fetchall()[0]
    assert entries + parts < 12 * turns * 1_000, (entries, parts)


def test_a_long_conversation_costs_its_length_over_many_works(conn: Conn, dsn: str) -> None:
    turns = 16
    pipeline = deployed(conn, talking(turns=turns, size=4_000))
    pipeline.submit(conn, "a", Data())
    for _ in range(turns):
        drain(pipeline, dsn)
        outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    found = pipeline.get(conn, "a")
    assert found is not None
    assert (found.status, found.data.said) == ("DONE", turns * 4_000)
    (entries, parts) = conn.execute(BYTES).fetchall()[0]
    assert entries < turns * 24_000, "what each work has written"
    assert parts < turns * 24_000, "what each wait has stored: a part or two"


def test_what_a_channel_has_as_changes_is_there_after_a_wait(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, talking(Annotated[list[AnyMessage], DeltaChannel(extended)], 3))
    pipeline.submit(conn, "a", Data())
    for _ in range(3):
        drain(pipeline, dsn)
        outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    found = pipeline.get(conn, "a")
    assert found is not None
    assert (found.status, found.data.said) == ("DONE", 3_000)


def test_state_beyond_the_limit_is_said(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_ENTRY", 100_000)
    pipeline = deployed(conn, talking(size=200_000, ask=False))
    pipeline.submit(conn, "a", Data())
    drain(pipeline, dsn)
    error = value(conn, "SELECT error FROM outbox.dead_jobs")
    assert "bytes of JSON; the limit is 100,000" in error
    assert error.startswith("node say has ")


def test_erase_deletes_what_a_graph_has_stored(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, talking(turns=2, size=100_000))
    pipeline.submit(conn, "a", Data())
    drain(pipeline, dsn)
    outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "DONE"
    assert value(conn, "SELECT count(*) FROM outbox.blob_parts") > 0
    pipeline.erase(conn, "a", by="sarah")
    for table in ("blobs", "blob_parts", "blob_uses", "checkpoints"):
        assert value(conn, f"SELECT count(*) FROM outbox.{table}") == 0, table


def test_retention_deletes_what_a_graph_has_stored(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, talking(turns=1, ask=False, size=100_000))
    pipeline.submit(conn, "a", Data())
    drain(pipeline, dsn)
    assert value(conn, "SELECT count(*) FROM outbox.blobs") > 0
    conn.execute("DELETE FROM outbox.workflow_states")
    conn.execute("UPDATE outbox.checkpoints SET made_at = made_at - interval '2 hours'")
    conn.execute(RETENTION["retention_checkpoints"], {"days": 0, "only": None, "but": [], "limit": 1000})
    for _ in range(2):
        conn.execute("SELECT outbox.blob_uses_sweep(0, 1000), outbox.blobs_sweep(0, 1000)")
    for table in ("blobs", "blob_parts", "blob_uses", "checkpoints"):
        assert value(conn, f"SELECT count(*) FROM outbox.{table}") == 0, table


def test_a_graph_run_by_invoke_in_the_event_loop_is_refused(conn: Conn, dsn: str) -> None:
    inner = builder.compile(name="inner")

    async def node(state: Any) -> Any:
        inner.invoke({})
        return {}

    graph = StateGraph(State)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    pipeline: Pipeline[Any] = Pipeline("p", data=Data, initial="NEW", final={"DONE"})
    graph_stage(pipeline, graph.compile(name="g"), on="NEW", to="DONE", input=lambda data: {}, retry=QUICK)(
        lambda run, output: None
    )
    deployed(conn, pipeline).submit(conn, "a", Data())
    drain_all(conn, dsn, pipeline)
    assert "await its ainvoke()" in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_a_journal_that_could_not_write_writes_nothing_more() -> None:
    class Broken:
        stage = "x"
        tries = 0

        async def once(self, key: str, function: Any, text: str) -> str:
            self.tries += 1
            raise ConnectionError("down")

    async def main() -> None:
        run: Any = Broken()
        given = Journal(run)
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await given.append({"delete": "x"}, "x")
        assert run.tries == 1
        await given.close()

    asyncio.run(main())


def test_a_cancelled_caller_leaves_no_gap() -> None:
    class Slow:
        stage = "x"

        def __init__(self) -> None:
            self.kept: list[str] = []
            self.go = asyncio.Event()

        async def once(self, key: str, function: Any, text: str) -> str:
            await self.go.wait()
            self.kept.append(text)
            return text

    async def main() -> None:
        run: Any = Slow()
        given = Journal(run)
        first = asyncio.create_task(given.append(1, "x"))
        await asyncio.sleep(0)
        second, third = asyncio.create_task(given.append(2, "x")), asyncio.create_task(given.append(3, "x"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        run.go.set()
        await asyncio.gather(second, third)
        assert run.kept == ["[1]", "[2,3]"], "one entry for what has come meanwhile"

    asyncio.run(main())


def test_an_answered_interrupt_is_known_though_the_graph_above_does_not_say_so_yet() -> None:
    """A crash between the two writes: the answer to the first question must not become that of the second one."""

    async def main() -> None:
        saver = Saver(encoding, Memory())
        inner: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": "inner:1", "checkpoint_id": "a"}}
        outer: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "b"}}
        first, second = (Interrupt("one?", "1" * 32),), (Interrupt("two?", "2" * 32),)
        await saver.aput_writes(inner, [("__interrupt__", first)], "task")
        await saver.aput_writes(outer, [("__interrupt__", first)], "1")
        assert saver.answered() == set()
        await saver.aput_writes(inner, [("__interrupt__", second), ("__resume__", ["yes"])], "task")
        assert saver.answered() == {"1" * 32}
        await saver.aput_writes(outer, [("__interrupt__", second)], "1")
        assert saver.answered() == {"1" * 32}

    asyncio.run(main())
