"""Runs the job on awa-pg: status change and next job commit in its own transaction; a Rust core claims and completes.

Settings: COPY into its queue storage (README), more workers per queue than the default, a pool of connections for the
handlers' transactions. More claimers and other claim batches (`AsyncClient.start`) were slower here.
"""

from __future__ import annotations

from dataclasses import dataclass

from awa import AsyncClient
from awa import Job as AwaJob

from .job import NEXT, STATUS_AFTER, Work, run

WORKERS = 200
CONNECTIONS = 20


@dataclass
class NoOp:
    workflow: int


@dataclass
class Enrich:
    workflow: int


@dataclass
class Act:
    workflow: int


async def main(work: Work) -> None:
    client = AsyncClient(work.dsn, max_connections=CONNECTIONS)
    if work.workflows:
        await client.migrate()
        await client.install_queue_storage(schema="awa")

    @client.task(NoOp, queue="no-op")
    async def no_op(job: AwaJob[NoOp]) -> None:
        with work.call():
            pass

    async def step(workflow: int, stage: str) -> None:
        async with await client.transaction() as transaction:
            await transaction.execute(
                "UPDATE workflows SET status = $1, steps = steps + 1 WHERE id = $2", STATUS_AFTER[stage], workflow
            )
            if work.writes:
                await transaction.execute("INSERT INTO effects VALUES ($1, $2)", workflow, stage)
            if stage in NEXT:
                await transaction.insert(Act(workflow), queue=NEXT[stage])

    @client.task(Enrich, queue="enrich")
    async def enrich(job: AwaJob[Enrich]) -> None:
        with work.call():
            await step(job.args.workflow, "enrich")

    @client.task(Act, queue="act")
    async def act(job: AwaJob[Act]) -> None:
        with work.call():
            await step(job.args.workflow, "act")

    first = NoOp if work.is_noop else Enrich
    if work.workflows:
        await client.enqueue_many_copy(
            [first(n) for n in range(work.workflows)], queue="no-op" if work.is_noop else "enrich"
        )
    await client.start([(name, WORKERS) for name in ("no-op", "enrich", "act")])
    await work.until_done()
    await client.shutdown()


if __name__ == "__main__":
    run("awa-pg", main)
