"""Measures what agents that wait for approvals cost an idle worker, beside as many that have ended."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import click
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from outbox import Pipeline, Run, deploy
from outbox.agents.pydantic_ai import OutboxDurability, Transcript, agent_stage

from ..idle import watched
from ..kit.database import Server, engine
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


class Kind(NamedTuple):
    """Agents, the status that they come to, and what they do there."""

    cases: Pipeline[Case]
    status: str
    does: str


KINDS = (Kind(ending, "DONE", "ended"), Kind(asking, "WAITING_FOR_APPROVAL", "wait"))

MORE = 20
"""Agents that the watched worker runs itself: it is one that has done some work."""


@contextmanager
def prepared(postgres: Server, agents: int) -> Iterator[dict[str, str]]:
    """Yields a database for each kind, by what its agents do, in which all of them have run.

    They are run once for all rounds, and by workers that don't wait for the disk: how fast is not measured here.
    """
    with ExitStack() as made, ThreadPoolExecutor() as both:
        found = {kind.does: made.enter_context(postgres.database()) for kind in KINDS}
        list(both.map(lambda kind: run_all(found[kind.does], kind, agents), KINDS))
        yield {does: str(conninfo_to_dict(dsn)["dbname"]) for does, dsn in found.items()}


def run_all(dsn: str, kind: Kind, agents: int) -> None:
    """Runs agents to their status by worker processes, which end when that is done."""
    name = sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
    with psycopg.connect(dsn, autocommit=True) as conn:
        deploy(conn, kind.cases)
        conn.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
        submit(conn, kind, 0, agents)
    with engine(dsn, "worker", "--app", app_of(kind), "--drain", "--processes", "2") as workers:
        workers.wait()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("ALTER DATABASE {} RESET synchronous_commit").format(name))
        found = conn.execute(COUNT, (kind.status,)).fetchone()
    if found != (agents,):
        raise click.ClickException(f"{found} of {agents} agents have come to {kind.status}")


COUNT = "SELECT sum(workflows) FROM outbox.status_counts WHERE status = %s"


def submit(conn: psycopg.Connection, kind: Kind, first: int, agents: int) -> None:
    kind.cases.submit_many(conn, ((f"case_{first + number}", Case()) for number in range(agents)))


def app_of(kind: Kind) -> str:
    return f"bench.agents.waiting:{kind.cases.name}"


def figures(
    postgres: Server, templates: dict[str, str], agents: int, seconds: float, settle: float
) -> dict[str, float]:
    """Returns the figures of a round: a worker beside agents that have ended, and one beside agents that wait.

    Both are watched at the same time, so that a busy moment of the machine meets both.
    """

    def watch(kind: Kind) -> dict[str, float]:
        with postgres.database(templates[kind.does]) as dsn:

            def work() -> None:
                with psycopg.connect(dsn, autocommit=True) as conn:
                    submit(conn, kind, agents, MORE)
                all_are_there = f"SELECT sum(workflows) = {agents + MORE} FROM outbox.status_counts"
                wait_until(dsn, f"{all_are_there} WHERE status = '{kind.status}'", 600)

            each = watched(postgres.dsn, dsn, seconds, settle, app_of(kind), work)
        return {f"{agents:,} agents {kind.does}: {name}": value for name, value in each.items()}

    with ThreadPoolExecutor() as both:
        return {name: value for found in both.map(watch, KINDS) for name, value in found.items()}
