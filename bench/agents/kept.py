"""Measures what it adds to an agent's requests and calls, and to a graph's nodes, that they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg

from outbox import Pipeline, Worker, deploy

from ..kit import report
from ..kit.database import Server
from . import of_langgraph, of_openai, of_pydantic_ai
from .timed import Ran

PARTS = {"p50": 0.5, "p95": 0.95}


class Subject(NamedTuple):
    """A framework, what of it is kept, and a pipeline that runs an agent of it twice: plain, and kept."""

    name: str
    what: str
    pipeline: Callable[[int, int, Ran], Pipeline[Any]]


SUBJECTS = (
    Subject("Pydantic AI", "request or call", of_pydantic_ai.pipeline),
    Subject("OpenAI Agents SDK", "request or call", of_openai.pipeline),
    Subject("LangGraph", "node", of_langgraph.pipeline),
)


def figures(postgres: Server, runs: int, turns: int, parallel: int) -> dict[str, float]:
    """Returns the figures of a round: one tool call of a response at a time, then `parallel` of them at once."""
    found: dict[str, float] = {}
    for subject in SUBJECTS:
        for how, width in (("one at a time", 1), (f"{parallel} at once", parallel)):
            with postgres.database() as dsn:
                times = measured(dsn, subject, runs, turns, width)
            calls = 1 + turns * (1 + width)
            added = [(kept - plain) / calls * 1000 for plain, kept in times]
            plain = [each / calls * 1000 for each, _ in times]
            for part, share in PARTS.items():
                name = f"{subject.name}, {how}"
                found[f"{name}: a kept {subject.what} adds, {part} ms"] = report.percentile(added, share)
                found[f"{name}: a plain {subject.what}, {part} ms"] = report.percentile(plain, share)
    return found


def measured(dsn: str, subject: Subject, runs: int, turns: int, width: int) -> list[tuple[float, float]]:
    """Returns the seconds of each run, plain and kept, one workflow at a time."""
    times: list[tuple[float, float]] = []
    pipeline = subject.pipeline(turns, width, lambda plain, kept: times.append((plain, kept)))
    with psycopg.connect(dsn, autocommit=True) as conn:
        deploy(conn, pipeline)
        pipeline.submit_many(conn, ((f"run_{n}", {}) for n in range(runs)))
    asyncio.run(Worker(pipeline, dsn, drain=True).run())
    assert len(times) == runs, f"{subject.name}: {len(times)} of {runs} runs have ended"
    return times
