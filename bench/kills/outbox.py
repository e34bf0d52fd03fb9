"""Runs the agent in a handler of Outbox; the write tool is an effect. A person answers what the engine asks."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

import outbox
from outbox import Pipeline, Run, Worker
from outbox.agents.pydantic_ai import OutboxDurability

from .agent import ASKED, END, WRITE, World, agent, run

ENTITY = "one"
EFFECT = {"outbox": {"effect": True}}


async def main(dsn: str, world: World, is_new: bool, of_write: dict[str, Any] | None = EFFECT) -> None:
    support = agent(world, OutboxDurability(), of_write=of_write)
    cases: Pipeline[dict[str, Any]] = Pipeline("cases", initial="NEW", final={"DONE"})

    @cases.stage("support", on="NEW", to="DONE")
    async def handle(run: Run[dict[str, Any]]) -> None:
        await support.run("help")
        world.point(END)

    with psycopg.connect(dsn, autocommit=True) as conn:
        if is_new:
            outbox.deploy(conn, cases)
            cases.submit(conn, ENTITY, {})
        working = asyncio.create_task(Worker(cases, dsn).run())
        while (found := cases.get(conn, ENTITY)) is None or found.status != "DONE":
            if working.done():
                working.result()
            await answer(conn, world)
            await asyncio.sleep(0.1)


async def answer(conn: psycopg.Connection, world: World) -> None:
    """Answers what is asked, as somebody does who looks at the account."""
    for question in outbox.approvals(conn):
        world.say(ASKED)
        paid = WRITE in world.happened()
        about = {"result": "paid"} if paid else None
        outbox.decide(
            conn, question.pipeline, question.entity_id, "yes" if paid else "no", by="ann", about=about,
            question=question.id,
        )  # fmt: skip


if __name__ == "__main__":
    run(main)
