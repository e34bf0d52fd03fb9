"""Measures what agents that wait for approvals cost an idle worker, beside as many that have ended."""

from __future__ import annotations

from functools import partial

import psycopg
from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from outbox import Pipeline, Run, deploy
from outbox.agents.pydantic_ai import OutboxDurability, Transcript, agent_stage

from ..idle import watched
from ..kit.database import Server
from ..kit.steps import wait_until


class Case(BaseModel):
    transcript: Transcript = Transcript()


def pipeline(name: str, *, asks: bool) -> Pipeline[Case]:
    """Returns a pipeline whose agent calls one tool, which needs approval or doesn't."""

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        is_first = not any(isinstance(message, ModelResponse) for message in messages)
        return ModelResponse(
            parts=[ToolCallPart("refund", {"cents": 900}, "refund_1") if is_first else TextPart("done")]
        )

    support: Agent[None, str] = Agent(FunctionModel(respond), name="support", capabilities=[OutboxDurability()])
    cases: Pipeline[Case] = Pipeline(name, data=Case, initial="NEW", final={"DONE"})

    @support.tool_plain(requires_approval=asks)
    async def refund(cents: int) -> str:
        return "paid"

    @agent_stage(cases, support, on="NEW", to="DONE", prompt=lambda case: "help")
    async def answered(run: Run[Case], output: str) -> None: ...

    return cases


asking = pipeline("asking", asks=True)
ending = pipeline("ending", asks=False)


def figures(postgres: Server, agents: int, seconds: float, settle: float, number: int) -> dict[str, float]:
    """Returns the figures of a round: the worker beside agents that have ended, and beside agents that wait.

    Each round takes the two in another order, so that a busy moment of the machine doesn't always meet the same one.
    """
    found: dict[str, float] = {}
    kinds = [("ended", ending, "DONE"), ("wait", asking, "WAITING_FOR_APPROVAL")]
    for does, cases, status in kinds if number % 2 else reversed(kinds):
        with postgres.database() as dsn:
            with psycopg.connect(dsn, autocommit=True) as conn:
                deploy(conn, cases)
            work = partial(run_all, dsn, cases, agents, status)
            each = watched(postgres.dsn, dsn, seconds, settle, f"bench.agents.waiting:{cases.name}", work)
            found |= {f"{agents:,} agents {does}: {name}": value for name, value in each.items()}
    return found


def run_all(dsn: str, cases: Pipeline[Case], agents: int, status: str) -> None:
    """Submits all agents. Returns when the worker has brought each of them to the status."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        cases.submit_many(conn, ((f"case_{number}", Case()) for number in range(agents)))
    wait_until(dsn, f"SELECT sum(workflows) = {agents} FROM outbox.status_counts WHERE status = '{status}'", 600)
