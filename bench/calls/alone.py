"""Runs the requests alone, with asyncio: no engine, no database. What this takes, every subject takes."""

from __future__ import annotations

import asyncio

from ..peers.job import STATUS_AFTER
from .work import PAUSE, Busy, Work, run


async def main(work: Work) -> None:
    async def workflow(number: int) -> None:
        for stage in STATUS_AFTER:
            while True:
                try:
                    await work.ask(number, stage)
                    break
                except Busy:
                    await asyncio.sleep(PAUSE)
        work.end(number)

    await asyncio.gather(*(workflow(number) for number in range(work.workflows)))


if __name__ == "__main__":
    run("outbox-engine", main)
