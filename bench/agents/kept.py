"""Measures what it adds to an agent's model requests and tool calls that they are kept: durable beside plain agents."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from outbox import Pipeline, Run, Worker, deploy
from outbox.agents.pydantic_ai import OutboxDurability

from ..kit import report
from ..kit.database import Server

PARTS = {"p50": 0.5, "p95": 0.95}


def figures(postgres: Server, runs: int, turns: int, parallel: int) -> dict[str, float]:
    """Returns the figures of a round: one tool call of a response at a time, then `parallel` of them at once."""
    found: dict[str, float] = {}
    for name, width in (("one at a time", 1), (f"{parallel} at once", parallel)):
        with postgres.database() as dsn:
            times = measured(dsn, runs, turns, width)
        calls = 1 + turns * (1 + width)
        added = [(kept - plain) / calls * 1000 for plain, kept in times]
        plain = [each / calls * 1000 for each, _ in times]
        for part, share in PARTS.items():
            found[f"{name}: a kept request or call adds, {part} ms"] = report.percentile(added, share)
            found[f"{name}: a plain request or call, {part} ms"] = report.percentile(plain, share)
    return found


def measured(dsn: str, runs: int, turns: int, width: int) -> list[tuple[float, float]]:
    """Returns the seconds that each run has taken, of the plain agent and of the durable one, in turn."""
    plain, kept = agent(turns, width), agent(turns, width, OutboxDurability())
    times: list[tuple[float, float]] = []
    pipeline: Pipeline[dict[str, Any]] = Pipeline("agents", initial="NEW", final={"DONE"})

    @pipeline.stage("run", on="NEW", to="DONE", concurrency=1)
    async def run(run: Run[dict[str, Any]]) -> None:
        taken = []
        for each in (plain, kept):
            started = time.perf_counter()
            await each.run("go")
            taken.append(time.perf_counter() - started)
        times.append((taken[0], taken[1]))

    with psycopg.connect(dsn, autocommit=True) as conn:
        deploy(conn, pipeline)
        pipeline.submit_many(conn, ((f"run_{n}", {}) for n in range(runs)))
    asyncio.run(Worker(pipeline, dsn, drain=True).run())
    assert len(times) == runs, f"{len(times)} of {runs} runs have ended"
    return times


def agent(turns: int, width: int, *capabilities: OutboxDurability[None]) -> Agent[None, str]:
    """Returns an agent that calls a tool `width` times at once, in each of its turns."""

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        if turn == turns:
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart("add", {"n": n}, f"call_{turn}_{n}") for n in range(width)])

    made = Agent(FunctionModel(respond), name="bench", capabilities=capabilities)

    @made.tool_plain
    async def add(n: int) -> int:
        return n + 1

    return made
