"""Tools with an effect: a call that may have happened is not repeated silently, and an approved one stays approved."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from pydantic_ai import Agent

import outbox
from kit.frameworks import PYDANTIC_AI, Framework, each_framework
from kit.models import call, script
from kit.pipelines import QUICK, Post, deployed, drain, drain_all, one_stage, run_one, status_of, value
from outbox import Backoff, Done, NotDone, Pipeline, Run
from outbox.agents.pydantic_ai import OutboxDurability, idempotency_key

Conn = psycopg.Connection[Any]
calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


async def cut_off(cents: int) -> str:
    """Pays, and then the connection is cut, so the result is unknown."""
    calls.append((cents, idempotency_key()))
    if len(calls) == 1:
        raise ConnectionError("cut off")
    return "paid"


def payer(of: Framework, pay: Any, **policy: Any) -> Any:
    return of.payer(pay, [of.call("pay", "c1", cents=5)], "done", **policy)


def handler(of: Framework, agent: Any) -> Any:
    async def handle(run: Run[Post]) -> Post:
        return Post(content=await of.paid(agent))

    return handle


def content(conn: Conn) -> str:
    return str(value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states"))


@each_framework
@pytest.mark.parametrize(
    ("answer", "about", "told", "made"),
    [("yes", {"result": "paid by hand"}, "paid by hand", 1), ("no", None, "paid", 2), ("repeat", None, "paid", 2)],
)
def test_a_person_says_whether_a_call_has_happened(
    conn: Conn, dsn: str, of: Framework, answer: str, about: Any, told: str, made: int
) -> None:
    pipeline = deployed(conn, one_stage(handler(of, payer(of, cut_off)), retry=QUICK))
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    (asked,) = outbox.approvals(conn)
    assert asked.question == "payer: has this call happened? pay"
    assert asked.data["about"] == {"cents": 5}
    outbox.decide(conn, pipeline, "a", answer, by="sarah", about=about)
    drain_all(conn, dsn, pipeline)
    assert (status_of(conn, "a"), content(conn), len(calls)) == ("DONE", told, made)
    assert len(set(calls)) == 1, "with the same idempotency key"


@each_framework
def test_a_call_is_looked_up(conn: Conn, dsn: str, of: Framework) -> None:
    keys: list[str] = []

    async def look_up(key: str) -> Done[str]:
        keys.append(key)
        return Done("found")

    run_one(conn, dsn, handler(of, payer(of, cut_off, on_unknown=look_up)))
    assert (content(conn), keys) == ("found", [calls[0][1]])


@each_framework
def test_a_call_that_has_not_happened_is_tried_again(conn: Conn, dsn: str, of: Framework) -> None:
    async def pay(cents: int) -> str:
        calls.append(cents)
        if len(calls) < 3:
            raise NotDone("busy")
        return "paid"

    async def handle(run: Run[Post]) -> Post:
        assert run.attempt == 1
        return await handler(of, payer(of, pay, retry=Backoff(first=0, attempts=5)))(run)  # type: ignore[no-any-return]

    run_one(conn, dsn, handle)
    assert (content(conn), calls) == ("paid", [5, 5, 5])


@each_framework
def test_an_approval_outlives_the_question_whether_the_call_has_happened(conn: Conn, dsn: str, of: Framework) -> None:
    pipeline: Pipeline[Any] = Pipeline("cases", data=of.case, initial="NEW", final={"DONE"})

    @of.agent_stage(  # type: ignore[untyped-decorator]
        pipeline, payer(of, cut_off, approval=True), on="NEW", to="DONE", prompt=lambda case: "go", retry=QUICK
    )
    async def answered(run: Run[Any], output: str) -> None:
        calls.append(output)

    deployed(conn, pipeline)
    pipeline.submit(conn, "a", of.case())
    drain(pipeline, dsn)
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": 4})
    drain(pipeline, dsn)
    (asked,) = outbox.approvals(conn)
    assert (asked.question, asked.data["about"]) == ("payer: has this call happened? pay", {"cents": 4})
    outbox.decide(conn, pipeline, "a", "yes", by="tom", about={"result": "it was paid"})
    drain_all(conn, dsn, pipeline)
    assert status_of(conn, "a") == "DONE"
    assert [each if isinstance(each, str) else each[0] for each in calls] == [4, "done"]
    found = pipeline.get(conn, "a")
    assert found is not None
    assert of.returned(found.data.transcript) == {"c1": "it was paid"}


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
@each_framework
def test_a_crash_beside_an_effect_lets_it_end(conn: Conn, dsn: str, of: Framework, kept: bool) -> None:
    crashed = asyncio.Event()

    async def pay(cents: int) -> str:
        calls.append(cents)
        async with asyncio.timeout(30):
            await crashed.wait()
        await asyncio.sleep(0.05)
        return "paid"

    async def crash() -> str:
        if not crashed.is_set():
            crashed.set()
            raise RuntimeError("crash")
        return "-"

    agent = of.payer(pay, [of.call("pay", "c1", cents=5), of.call("new", "c2")], "done")
    of.add_tool(agent, crash, kept)
    run_one(conn, dsn, handler(of, agent))
    assert (content(conn), calls, outbox.approvals(conn)) == ("paid", [5], [])


@pytest.mark.parametrize("wrong", [{"effect": 1}, {"on_unknown": "repeat"}])
def test_an_effect_that_says_nothing_is_refused(conn: Conn, dsn: str, wrong: Any) -> None:
    agent = Agent(script([call("pay", "c1")], "done"), name="payer", capabilities=[OutboxDurability()])
    agent.tool_plain(lambda: 1, name="pay", metadata={"outbox": wrong})
    run_one(conn, dsn, handler(PYDANTIC_AI, agent), retry=Backoff(attempts=1))
    assert "DefinitionError: tool pay: " in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_arguments_that_postgres_can_not_hold_are_not_shown(conn: Conn, dsn: str) -> None:
    async def pay(memo: str = "\0") -> str:
        calls.append(memo)
        raise ConnectionError("cut off")

    agent = Agent(script([call("pay", "c1")], "done"), name="payer", capabilities=[OutboxDurability()])
    agent.tool_plain(pay, metadata={"outbox": {"effect": True}})
    pipeline = deployed(conn, one_stage(handler(PYDANTIC_AI, agent), retry=QUICK))
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    (asked,) = outbox.approvals(conn)
    assert (calls, "about" in asked.data) == (["\0"], False)
