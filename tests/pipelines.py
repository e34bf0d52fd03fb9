"""The pipeline that most tests use, and what they ask of the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from pooler import way
from pydantic import BaseModel

from outbox import Backoff, Go, Pipeline, Run, Worker
from outbox.definition import deploy


class Post(BaseModel):
    content: str = "hello"
    enrichment: dict[str, Any] | None = None


QUICK = Backoff(first=0.01, factor=1, max=0.05, attempts=4)


def make_posts(**stages: Callable[..., Any]) -> Pipeline[Post]:
    """Return the social media pipeline; `enrich`, `decide` and `act` may be given as functions."""
    posts = Pipeline("posts", data=Post, initial="RECEIVED", final={"COMPLETED", "REJECTED"})

    async def enrich(run: Run[Post]) -> Post:
        run.publish("posts.enriched", {"entity_id": run.entity_id})
        return run.data.model_copy(update={"enrichment": {"length": len(run.data.content)}})

    async def decide(run: Run[Post]) -> Go[Post]:
        return Go("WAITING_FOR_REVIEW" if "risky" in run.data.content else "APPROVED")

    async def act(run: Run[Post]) -> None:
        return None

    posts.stage("enrich", on="RECEIVED", to="ENRICHED", retry=QUICK)(stages.get("enrich", enrich))
    posts.stage("decide", on="ENRICHED", to={"WAITING_FOR_REVIEW", "APPROVED"}, retry=QUICK)(
        stages.get("decide", decide)
    )
    posts.stage("act", on="APPROVED", to="COMPLETED", retry=QUICK)(stages.get("act", act))
    posts.allow("WAITING_FOR_REVIEW", to={"APPROVED", "REJECTED"})
    return posts


def deployed(conn: psycopg.Connection[Any], pipeline: Pipeline[Any] | None = None) -> Pipeline[Any]:
    pipeline = pipeline or make_posts()
    deploy.deploy(conn, pipeline)
    return pipeline


def drain(pipeline: Pipeline[Any] | list[Pipeline[Any]], dsn: str, **options: Any) -> Worker:
    """Run all that is due in this process."""
    import asyncio

    worker = Worker(pipeline, **way(dsn), drain=True, **options)
    asyncio.run(asyncio.wait_for(worker.run(), 60))
    return worker


def status_of(conn: psycopg.Connection[Any], entity: str) -> str:
    row = conn.execute("SELECT current_status FROM outbox.workflow_states WHERE entity_id = %s", [entity]).fetchone()
    assert row is not None, f"{entity} is not there"
    return str(row[0])


def value(conn: psycopg.Connection[Any], statement: str, *params: Any) -> Any:
    row = conn.execute(statement.encode(), params or None).fetchone()
    return None if row is None else row[0]
