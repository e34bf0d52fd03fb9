"""Payments by run.effect, for workers that are killed and frozen. The bank is a table that notes each transfer.

An entity tells by its name what happens if its effect is unknown: `ask…`, `look_up…` or `repeat…`. With GATE in the
environment, a transfer waits until the bank has opened.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import psycopg

from outbox import Backoff, Done, NotDone, Pipeline, Run, SyncRun
from outbox.database import killpoints

DSN = os.environ["OUTBOX_DSN"]
RETRY = Backoff(first=0.05, factor=2, max=1, attempts=8)
bank: Pipeline[dict[str, Any]] = Pipeline("bank", initial="NEW", final={"DONE"})


async def transfer(*, idempotency_key: str) -> str:
    return await asyncio.to_thread(transfer_in_thread, idempotency_key=idempotency_key)


def transfer_in_thread(*, idempotency_key: str) -> str:
    with psycopg.connect(DSN, autocommit=True) as conn:
        killpoints.passing("K2")
        conn.execute("INSERT INTO outbox.bank_calls VALUES (%s)", (idempotency_key,))
        while "GATE" in os.environ and not conn.execute("SELECT FROM outbox.gate").rowcount:
            time.sleep(0.02)
        conn.execute("INSERT INTO outbox.bank VALUES (%s)", (idempotency_key,))
    return "paid"


def look_up(idempotency_key: str) -> Done[str] | NotDone:
    with psycopg.connect(DSN, autocommit=True) as conn:
        found = conn.execute("SELECT FROM outbox.bank WHERE key = %s", (idempotency_key,)).rowcount
    return Done("paid") if found else NotDone()


def policy(entity: str) -> Any:
    name = entity.partition("-")[0]
    return look_up if name == "look_up" else name


@bank.stage("pay", on="NEW", to="PAID", retry=RETRY, timeout=120)
async def pay(run: Run[dict[str, Any]]) -> None:
    assert await run.effect("transfer", transfer, on_unknown=policy(run.entity_id)) == "paid"


@bank.stage("again", on="PAID", to="DONE", retry=RETRY, timeout=120, transaction=True)
def again(run: SyncRun[dict[str, Any]]) -> None:
    assert run.effect("transfer", transfer_in_thread, on_unknown=policy(run.entity_id)) == "paid"
