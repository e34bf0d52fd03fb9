"""Runs the job on Outbox: two stages, each as wide as there are workflows. A refusal is `Retry(after=)`."""

from __future__ import annotations

from typing import Any

import psycopg

from outbox import Backoff, Pipeline, Retry, Run, deploy

from ..kit.timed import FINISH
from ..kit.watched import WatchedWorker
from .work import PAUSE, TRIES, Busy, Work, run

Data = dict[str, Any]


async def main(work: Work) -> None:
    last: dict[str, int] = {}
    calls: Pipeline[Data] = Pipeline("calls", initial="RECEIVED", final={"COMPLETED"})

    async def ask(run: Run[Data]) -> None:
        try:
            await work.ask(int(run.entity_id), run.stage)
        except Busy as error:
            raise Retry(after=PAUSE) from error

    @calls.stage("enrich", on="RECEIVED", to="ENRICHED", retry=Backoff(attempts=TRIES))
    async def enrich(run: Run[Data]) -> None:
        await ask(run)

    @calls.stage("act", on="ENRICHED", to="COMPLETED", retry=Backoff(attempts=TRIES))
    async def act(run: Run[Data]) -> None:
        last[str(run.workflow_id)] = int(run.entity_id)
        await ask(run)

    def note(statement: bytes, rows: list[tuple[Any, ...]], seconds: float) -> None:
        if statement is FINISH:
            for (workflow,) in rows:
                if str(workflow) in last:
                    work.end(last[str(workflow)])

    with psycopg.connect(work.dsn, autocommit=True) as conn:
        deploy(conn, calls)
        calls.submit_many(conn, ((str(number), {}) for number in range(work.workflows)))
    await work.until_done_by(WatchedWorker(calls, work.dsn, note, concurrency=min(work.workflows, 10_000)).run())


if __name__ == "__main__":
    run("outbox-engine", main)
