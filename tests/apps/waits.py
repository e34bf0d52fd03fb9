"""Every kind of wait in one application, for workers that are killed, frozen and cut off.

A case asks a person (with a deadline), waits for a signal, spawns three children, and waits for these. What the world
sees goes into tables without any unique constraint, by a connection of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
from datetime import timedelta
from typing import Any

import psycopg
from pydantic import BaseModel

from outbox import Backoff, Go, Pipeline, Run, Tick, WaitForApproval, WaitForChildren, WaitForSignal

RETRY = Backoff(first=0.05, factor=1.5, max=0.5, attempts=50)


class Case(BaseModel):
    payment: dict[str, Any] | None = None
    number: int | None = None


cases = Pipeline("cases", data=Case, initial="NEW", final={"CLOSED", "REFUSED", "LATE"})
cases.allow("ASKED", to={"PAYABLE", "REFUSED", "LATE"})
cases.allow("UNPAID", to={"PAID", "LATE"})
cases.allow("SPLIT", to={"MERGED", "LATE"})
parts: Pipeline[dict[str, Any]] = Pipeline("parts", initial="NEW", final={"DONE", "CANCELLED"})
parts.allow("NEW", to="CANCELLED")


def trouble() -> None:
    if random.random() < 0.05:
        raise RuntimeError("trouble")


async def world(statement: str, *params: Any) -> None:
    async with await psycopg.AsyncConnection.connect(os.environ["OUTBOX_DSN"], autocommit=True) as conn:
        await conn.execute(statement.encode(), params)


async def draw() -> int:
    return random.randrange(10**9)


@cases.stage("ask", on="NEW", to="ASKED", retry=RETRY, timeout=10)
async def ask(run: Run[Case]) -> WaitForApproval[Case]:
    trouble()
    number = await run.once("number", draw)
    await world("INSERT INTO outbox.drawn VALUES (%s, %s)", run.entity_id, number)
    trouble()
    return WaitForApproval(
        "Pay?", data=Case(number=number), options={"approve": "PAYABLE", "reject": "REFUSED"},
        deadline=timedelta(seconds=random.choice([0.5, 3600])), on_deadline="LATE", remind_every=timedelta(seconds=1),
    )  # fmt: skip


@cases.stage("bill", on="PAYABLE", to="UNPAID", retry=RETRY, timeout=10)
def bill(run: Run[Case]) -> WaitForSignal[Case]:
    trouble()
    return WaitForSignal("payment", to="PAID", into="payment", timeout=timedelta(hours=1), on_timeout="LATE")


@cases.stage("split", on="PAID", to="SPLIT", retry=RETRY, timeout=10, transaction=True)
async def split(run: Run[Case]) -> WaitForChildren[Case]:
    trouble()
    for number in range(3):
        run.spawn(parts, f"{run.entity_id}/{number}", {}, cancel="CANCELLED")
    return WaitForChildren(to="MERGED", timeout=timedelta(hours=1), on_timeout="LATE")


@parts.stage("work", on="NEW", to="DONE", retry=RETRY, timeout=10)
async def work(run: Run[dict[str, Any]]) -> None:
    await asyncio.sleep(random.random() * 0.02)
    trouble()


@cases.stage("close", on="MERGED", to="CLOSED", retry=RETRY, timeout=10)
async def close(run: Run[Case]) -> Go[Case]:
    trouble()
    return Go("CLOSED")


@cases.every("* * * * * *", missed="catch up", timeout=5)
async def tick(at: Tick) -> None:
    await at.connection.execute("INSERT INTO outbox.ticks VALUES (%s)", (at.at,))
    trouble()


@cases.on_change("CLOSED", "REFUSED", "LATE", name="tell", retry=RETRY)
async def tell(run: Run[Any]) -> None:
    trouble()
    await world("INSERT INTO outbox.told VALUES (%s, %s)", run.data.entity_id, run.data.status)
