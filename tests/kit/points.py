"""Points of an application at which its processes kill themselves, each process at another one.

The n-th process has the n-th pipeline, and ends by SIGKILL when it passes the n-th point. The last one has no point, and
takes over all pipelines.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any

import psycopg

from outbox import Pipeline, Worker

COUNT = "INSERT INTO outbox.calls (entity, what) VALUES (%s, %s)"
left = 0


def point() -> None:
    """Ends this process if it is the point of its own."""
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def happens(what: str, entity: str) -> None:
    """Has the world count what happens, between two points."""
    point()
    with psycopg.connect(os.environ["OUTBOX_DSN"], autocommit=True) as world:
        world.execute(COUNT, (entity, what))
    point()


async def happens_async(what: str, entity: str) -> None:
    """Does what `happens` does, async: parallel calls pass their points in turn."""
    point()
    async with await psycopg.AsyncConnection.connect(os.environ["OUTBOX_DSN"], autocommit=True) as world:
        await world.execute(COUNT, (entity, what))
    point()


def run(pipelines: Sequence[Pipeline[Any]]) -> None:
    """Runs a process for each pipeline until all but the first have killed themselves, and then a worker of all."""
    global left
    children = []
    for number, mine in enumerate(pipelines):
        if (child := os.fork()) == 0:
            left = number
            asyncio.run(Worker(mine, os.environ["OUTBOX_DSN"]).run())
            os._exit(1)
        children.append(child)
    for child in children[1:]:
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status
    os.kill(children[0], signal.SIGKILL)
    asyncio.run(Worker(pipelines, os.environ["OUTBOX_DSN"]).run())
