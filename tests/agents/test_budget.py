"""What an agent spends is counted over attempts and turns, and a budget ends it before the next request."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from pydantic_ai import Agent

from kit.models import call, script
from kit.pipelines import Post, run_one, value
from outbox import Backoff, DefinitionError, Run
from outbox.agents.pydantic_ai import Budget, BudgetExceeded, OutboxDurability, durable, operations

Conn = psycopg.Connection[Any]
calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def talker(turns: int = 9) -> Agent[None, str]:
    agent = Agent(
        script(*([call("note", f"c{n}", n=n)] for n in range(turns)), "enough", said=calls.append),
        name="talker", capabilities=[OutboxDurability()],
    )  # fmt: skip

    @agent.tool_plain
    def note(n: int) -> int:
        return n

    return agent


def run_with(conn: Conn, dsn: str, budget: Budget, turns: int = 9, attempts: int = 3) -> str | None:
    """Runs the agent in attempts that all fail after their second request."""

    async def handle(run: Run[Post]) -> None:
        with durable(run, budget=budget):
            await talker(turns).run("go")
        raise ValueError("after the agent")

    run_one(conn, dsn, handle, retry=Backoff(first=0, attempts=attempts))
    return str(value(conn, "SELECT error FROM outbox.dead_jobs"))


def test_requests_that_were_kept_cost_an_attempt_nothing(conn: Conn, dsn: str) -> None:
    assert str(run_with(conn, dsn, Budget(requests=2), turns=1)).startswith("ValueError: after the agent")
    assert calls == [1, 2]


def test_the_budget_of_a_workflow_counts_what_was_kept(conn: Conn, dsn: str) -> None:
    told = run_with(conn, dsn, Budget(workflow_requests=4))
    assert told == "the agent has spent its budget: 4 requests in this workflow, of 4"
    assert calls == [1, 2, 3, 4], "the job is dead at once"


def test_tokens_are_counted_before_the_next_request(conn: Conn, dsn: str) -> None:
    told = run_with(conn, dsn, Budget(tokens=1))
    assert "tokens in this attempt, of 1" in str(told)
    assert calls == [1]


def test_what_was_spent_before_counts(conn: Conn, dsn: str) -> None:
    async def handle(run: Run[Post]) -> None:
        with (
            pytest.raises(BudgetExceeded, match="7 requests in this workflow, of 7") as caught,
            durable(run, budget=Budget(workflow_requests=7), spent=(5, 0)) as spending,
        ):
            await talker().run("go")
        assert (caught.value.limit, spending.requests, spending.workflow_requests) == ("workflow_requests", 2, 7)

    run_one(conn, dsn, handle)
    assert calls == [1, 2]


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "9"])
def test_a_budget_is_a_whole_number(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="Budget tokens="):
        Budget(tokens=wrong)


def test_a_conversation_that_is_too_long_is_ended_before_the_next_request(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "MAX_CONVERSATION", 2_000)
    told = run_with(conn, dsn, Budget())
    assert "the conversation has " in str(told)
    assert "the limit is 2,000" in str(told)
    assert 1 < len(calls) < 9
