"""Defines stages whose handlers write in transactions, each once with a transaction of its own and once shared.

For bench.sharing. `booked` and `accounts` are tables of the application.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

from outbox import Pipeline, Run

from .app import BOOK, Post

SHARE = 50
"""Handlers that may take turns in a transaction."""

ACCOUNTS = 1_000
SLOW = 0.02
"""Seconds that the slow handler waits for something else than the database."""

TABLE = "CREATE TABLE accounts (id int PRIMARY KEY, changes int NOT NULL DEFAULT 0)"
ADD = "UPDATE accounts SET changes = changes + 1 WHERE id = %s"

Handler = Callable[[Run[Post]], Coroutine[Any, Any, None]]


async def write(run: Run[Post]) -> None:
    await run.connection.execute(BOOK, (run.entity_id, run.stage))


def change_one_of(rows: int) -> Handler:
    """Returns a handler that also updates one of so many rows, which others update, too."""

    async def change(run: Run[Post]) -> None:
        await run.connection.execute(ADD, (zlib.crc32(f"{run.entity_id} {run.stage}".encode()) % rows,))
        await write(run)

    return change


async def take_time(run: Run[Post]) -> None:
    await asyncio.sleep(SLOW)
    await write(run)


HANDLERS: dict[str, tuple[str, Handler]] = {
    "row": ("a row", write),
    "hot_50": ("one of 50 hot rows", change_one_of(50)),
    "hot_1000": ("one of 1,000 hot rows", change_one_of(ACCOUNTS)),
    "slow": ("a handler of 20 ms", take_time),
}
"""What a handler does, by the beginning of its pipelines' names."""


def _pipeline(name: str, share: int | None) -> Pipeline[Post]:
    _, handler = HANDLERS[name]
    made: Pipeline[Post] = Pipeline(
        f"{name}_{'shared' if share else 'alone'}", data=Post, initial="RECEIVED", final={"COMPLETED"}
    )
    for stage, on, to in (("first", "RECEIVED", "BOOKED"), ("second", "BOOKED", "COMPLETED")):
        made.stage(stage, on=on, to=to, transaction=True, share=share)(handler)
    return made


row_alone, hot_50_alone, hot_1000_alone, slow_alone = ALONE = [_pipeline(name, None) for name in HANDLERS]
row_shared, hot_50_shared, hot_1000_shared, slow_shared = SHARED = [_pipeline(name, SHARE) for name in HANDLERS]
