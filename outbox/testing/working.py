"""Runs a worker of this process on a DSN, until nothing is due."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ..database.given import AnyDsn, given
from ..database.link import Link
from ..database.statements import text_array
from ..definition.failed_attempts import FailedAttempt
from ..definition.pipeline import Pipeline
from ..engine.inflight import Counts
from ..engine.worker import Worker
from .sequence import SQL, is_meant


@dataclass
class Drained:
    """How the attempts of a drain have ended: `counts` has `done`, `retried`, `dead` and `lost`."""

    counts: Counts = field(default_factory=Counts)


async def work(
    pipelines: list[Pipeline[Any]], dsn: AnyDsn, raise_errors: bool, retries: bool, stages: Collection[str] | None,
    options: dict[str, Any],
) -> Drained:  # fmt: skip
    """Has workers run what is due, one after the other as long as there are `retries`."""
    counts, errors = Counts(), list[BaseException]()
    told = options.pop("on_error", None)
    if stages is not None:
        options["stages"] = list(stages)
    link = Link(given(dsn), "drain")
    try:
        while True:
            workers = list[Worker]()

            async def on_error(error: BaseException, failed: FailedAttempt, workers: list[Worker] = workers) -> None:
                if raise_errors and (failed.final or not retries) and not is_meant(error):
                    errors.append(error)
                    workers[0].stop()
                if told is not None:
                    result = told(error, failed)
                    if inspect.isawaitable(result):
                        await result

            worker = Worker(pipelines, dsn, drain=True, on_error=on_error, **options)
            workers.append(worker)
            worker.counts = counts
            await worker.run()
            if errors:
                raise _first(errors)
            if not retries or not await _hasten(link, pipelines):
                return Drained(counts)
    finally:
        await link.close()


def _first(errors: list[BaseException]) -> BaseException:
    """Returns the first of these errors, with a note of the others."""
    first, *others = errors
    if others:
        first.add_note(f"{len(others)} more attempts have failed in this drain")
    return first


async def _hasten(link: Link, pipelines: list[Pipeline[Any]]) -> bool:
    every = [*pipelines, *(each for pipeline in pipelines for each in pipeline.reactions.values())]
    ((count,),) = await link.repeat(SQL["jobs_hasten"], {"pipelines": text_array(each.name for each in every)})
    return bool(count)
