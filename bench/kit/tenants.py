"""Defines one stage with each kind of limit, for bench.limits. It changes only the status of tenants' jobs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from outbox import Pipeline, Run


class Task(BaseModel):
    tenant: int = 0
    urgency: int = 0


HIGH = "1000000/second"
LIMITS: dict[str, dict[str, Any]] = {
    "none": {},
    "concurrency": {"concurrency": 2_000},
    "rate": {"rate": HIGH},
    "priority": {"priority": lambda d: d.urgency},
    "in_turn": {"partition": lambda d: d.tenant},
    "each": {"partition": lambda d: d.tenant, "concurrency": 1_000, "rate": HIGH},
    "fair": {"partition": lambda d: d.tenant, "total_rate": "2000/second"},
    "exact": {"rate": "100/second"},
}


async def work(run: Run[Task]) -> None:
    pass


def _pipeline(name: str) -> Pipeline[Task]:
    made: Pipeline[Task] = Pipeline(name, data=Task, initial="RECEIVED", final={"COMPLETED"})
    made.stage("work", on="RECEIVED", to="COMPLETED", **LIMITS[name])(work)
    return made


none, concurrency, rate, priority, in_turn, each, fair, exact = PIPELINES = [_pipeline(name) for name in LIMITS]
