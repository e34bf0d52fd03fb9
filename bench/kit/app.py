"""Defines the pipelines that are measured, and for each what the database must contain in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from outbox import Go, Pipeline, Run

STAGES = (("enrich", "RECEIVED", "ENRICHED"), ("decide", "ENRICHED", "APPROVED"), ("act", "APPROVED", "COMPLETED"))


class Post(BaseModel):
    content: str
    sentiment: float | None = None


# Three stages with a pydantic model: new data in one of them, a message in each.
posts = Pipeline("posts", data=Post, initial="RECEIVED", final={"COMPLETED"})


@posts.stage("enrich", on="RECEIVED", to="ENRICHED")
async def enrich(run: Run[Post]) -> Post:
    run.publish("posts.enriched", {"entity_id": run.entity_id})
    return run.data.model_copy(update={"sentiment": 0.5})


@posts.stage("decide", on="ENRICHED", to="APPROVED")
async def decide(run: Run[Post]) -> Go[Post]:
    run.publish("posts.decided", {"entity_id": run.entity_id})
    return Go("APPROVED")


@posts.stage("act", on="APPROVED", to="COMPLETED")
async def act(run: Run[Post]) -> None:
    run.publish("posts.completed", {"entity_id": run.entity_id})


# The same with plain functions, which run in threads.
plain = Pipeline("plain", data=Post, initial="RECEIVED", final={"COMPLETED"})


@plain.stage("enrich", on="RECEIVED", to="ENRICHED")
def enrich_plainly(run: Run[Post]) -> Post:
    run.publish("posts.enriched", {"entity_id": run.entity_id})
    return run.data.model_copy(update={"sentiment": 0.5})


@plain.stage("decide", on="ENRICHED", to="APPROVED")
def decide_plainly(run: Run[Post]) -> Go[Post]:
    run.publish("posts.decided", {"entity_id": run.entity_id})
    return Go("APPROVED")


@plain.stage("act", on="APPROVED", to="COMPLETED")
def act_plainly(run: Run[Post]) -> None:
    run.publish("posts.completed", {"entity_id": run.entity_id})


# One stage that changes only the status.
noop = Pipeline("noop", data=Post, initial="RECEIVED", final={"COMPLETED"})


@noop.stage("pass", on="RECEIVED", to="COMPLETED")
async def pass_on(run: Run[Post]) -> None:
    pass


# Two stages that each write a row of the application in the step's transaction: alone, in turns, in batches.
BOOK = "INSERT INTO booked (entity, stage) VALUES (%s, %s)"
BOOK_MANY = "INSERT INTO booked (entity, stage) SELECT entity, %s FROM unnest(%s::text[]) AS e (entity)"

booked = Pipeline("booked", data=Post, initial="RECEIVED", final={"COMPLETED"})
shared = Pipeline("shared", data=Post, initial="RECEIVED", final={"COMPLETED"})
batched = Pipeline("batched", data=Post, initial="RECEIVED", final={"COMPLETED"})


async def book(run: Run[Post]) -> None:
    await run.connection.execute(BOOK, (run.entity_id, run.stage))


async def book_many(runs: list[Run[Post]]) -> None:
    await runs[0].connection.execute(BOOK_MANY, (runs[0].stage, [run.entity_id for run in runs]))


for name, on, to in (("first", "RECEIVED", "BOOKED"), ("second", "BOOKED", "COMPLETED")):
    booked.stage(name, on=on, to=to, transaction=True)(book)
    shared.stage(name, on=on, to=to, transaction=True, share=50)(book)
    batched.stage(name, on=on, to=to, transaction=True, batch=100)(book_many)


@dataclass(frozen=True, slots=True)
class Shape:
    """A pipeline of a module, with the steps, messages and application rows that each of its workflows makes."""

    pipeline: Pipeline[Any]
    steps: int
    messages: int = 0
    rows: int = 0
    module: str = __name__


POSTS, PLAIN, NOOP = Shape(posts, 3, messages=3), Shape(plain, 3, messages=3), Shape(noop, 1)
BOOKED, SHARED, BATCHED = Shape(booked, 2, rows=2), Shape(shared, 2, rows=2), Shape(batched, 2, rows=2)
SHAPES = (POSTS, PLAIN, NOOP, BOOKED, SHARED, BATCHED)
