"""Measures what it adds to an agent's model requests and tool calls that they are kept: durable beside plain agents.

`python -m bench.agents --help`
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import click
import psycopg
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from outbox import Pipeline, Run, Worker, deploy
from outbox.agents.pydantic_ai import OutboxDurability

from .kit import report
from .kit.database import machine, server

PARTS = {"p50": 0.5, "p95": 0.95}


@click.command()
@click.option("--runs", default=300, show_default=True, help="Runs of each agent in a round.")
@click.option("--turns", default=5, show_default=True, help="Tool calls of a run, each after a model request.")
@click.option("--parallel", default=8, show_default=True, help="Tool calls of one response, in the runs with many.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(runs: int, turns: int, parallel: int, rounds: int, json_file: Path | None) -> None:
    """Measure one workflow at a time, in which each agent runs once. The model and the tools answer at once."""
    found: dict[str, list[float]] = {}
    with server() as postgres:
        for number in range(1, rounds + 1):
            for name, width in (("one at a time", 1), (f"{parallel} at once", parallel)):
                report.progress(f"round {number} of {rounds}: {name}")
                with postgres.database() as dsn:
                    times = measured(dsn, runs, turns, width)
                calls = 1 + turns * (1 + width)
                added = [(kept - plain) / calls * 1000 for plain, kept in times]
                plain = [each / calls * 1000 for each, _ in times]
                for part, share in PARTS.items():
                    title = f"{name}: a kept request or call adds, {part} ms"
                    found.setdefault(title, []).append(report.percentile(added, share))
                    title = f"{name}: a plain request or call, {part} ms"
                    found.setdefault(title, []).append(report.percentile(plain, share))
        where = machine(postgres.dsn)
    figures = {title: report.spread(values) for title, values in found.items()}
    settings = {"runs": runs, "turns": turns, "parallel": parallel, "rounds": rounds}
    report.show("agents", settings, figures, where, json_file)


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


if __name__ == "__main__":
    main()
