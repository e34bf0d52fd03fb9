"""Runs one handler (step 3): validated data in, an outcome out. It uses no database unless the handler asks for one.

Whatever a handler does (raise SystemExit, return nonsense, raise an exception that can't be printed), the result is an
outcome. No handler and no data can end a worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from .. import texts
from ..definition import returned
from ..definition.reasons import describe
from ..definition.run import Run, SyncRun
from ..errors import HandlerError, InvalidInput, TooNewData
from ..process.forks import leave_if_forked
from ..process.service import is_cancelled
from . import effects
from .job import Failed, Finished, Job, Missed, Outcome, PutBack, fail, newer_worker
from .pacing import is_late


def begin(job: Job, connection: Any = None) -> Run[Any] | Failed | PutBack:
    """Returns the handler's run; Failed, for good or with a retry, if the stored data or the job doesn't fit.

    PutBack if only newer code can read the data, or takes the status: that counts no attempt, which the newer worker
    needs for itself.
    """
    if not job.status:
        return Failed(
            "the job doesn't belong to its workflow: it is of another pipeline or version. outbox retry", None
        )
    if job.status not in job.stage.on and job.status != job.stage.running:
        # A deploy has changed what the stage takes, and the code here is of before or after it; or it was made by hand.
        on = " and ".join(sorted(job.stage.on))
        takes = f"stage {job.stage.queue} takes {on}, and the workflow is in {job.status}: not run"
        return PutBack(newer_worker(takes, if_routed=True))
    try:
        kind = Run if job.stage.is_async else SyncRun
        return kind(job, job.stage.data.load(job.metadata), connection)
    except ValidationError as error:
        told = f"the stored metadata doesn't fit the pipeline's data: {texts.explain(error)}"
        return Failed(told, None, HandlerError(told))
    except TooNewData as error:  # a newer worker can read it, once there is one
        return PutBack(newer_worker(describe(error)))
    except HandlerError as error:
        return Failed(describe(error), None, error)
    except BaseException as error:  # validators are user code, as handlers are
        return fail(job, error)


async def handle_async(runs: Sequence[Run[Any]]) -> list[Outcome]:
    """Calls an async handler in the event loop, with one run, or with all runs of a `batch`.

    It doesn't share a generator of steps with its sync twin: that would add 3 µs to each job without a transaction.
    """
    if _too_late(runs):
        return [Missed() for _ in runs]
    try:
        result = await _call(runs)
        leave_if_forked()
        return finish(runs, result)
    except BaseException as error:
        leave_if_forked()
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise  # the worker's own cancellation, not the handler's
        return [_failed(run, error) for run in runs]


def handle_sync(runs: Sequence[Run[Any]]) -> list[Outcome]:
    """Calls a sync handler in the calling thread."""
    if _too_late(runs):
        return [Missed() for _ in runs]
    try:
        result = _call(runs)
        leave_if_forked()
        return finish(runs, result)
    except BaseException as error:
        leave_if_forked()
        return [_failed(run, error) for run in runs]


def handle_job(job: Job) -> Outcome:
    """Runs a sync handler with one job in the calling thread, its data's validators included."""
    if is_late(job.starts, time.monotonic()):
        return Missed()
    job.begin()  # validators are user code: they have the attempt's time, too
    run = begin(job)
    return handle_sync([run])[0] if isinstance(run, Run) else run


def _too_late(runs: Sequence[Run[Any]]) -> bool:
    """Returns whether a start time has passed or a job was taken away: getting a connection or a thread takes time."""
    now = time.monotonic()
    for run in runs:  # noqa: SIM110 - with each step, and a generator takes a µs
        if run._job.lost is not None or is_late(run._job.starts, now):
            return True
    return False


def _failed(run: Run[Any], error: BaseException) -> Outcome:
    failed = fail(run._job, error)
    return failed if run._effects is None else effects.settled(run, failed)


def _call(runs: Sequence[Run[Any]]) -> Any:
    stage = runs[0]._job.stage
    for run in runs:
        run._job.begin()
    if stage.batch is None:
        return stage.handler(runs[0])
    effects.together(runs)
    return stage.handler(list(runs))


def finish(runs: Sequence[Run[Any]], result: Any) -> list[Outcome]:
    """Turns what a handler returned into outcomes."""
    stage = runs[0]._job.stage
    if stage.batch is None:
        results = [result]
    elif result is None:
        results = [None] * len(runs)
    elif not isinstance(result, list | tuple) or len(result) != len(runs):
        what = f"{len(result)} results" if isinstance(result, list | tuple) else f"a {type(result).__name__}"
        raise HandlerError(
            f"stage {stage.queue} returned {what} for {len(runs)} runs: return a list of as many, or None"
        )
    else:
        results = list(result)
    outcomes: list[Outcome] = []
    for run, one in zip(runs, results, strict=True):
        try:
            status, data, wait = returned.read(stage, one, run._job.status)
            if run._spawned:
                wait = {**(wait or {}), "spawn": run._spawned}
            finished = Finished(status, data, run._messages, wait)
            outcomes.append(finished if run._effects is None else effects.settled(run, finished))
        except InvalidInput as error:
            raise HandlerError(f"stage {stage.queue} returned data that can't be stored: {error}") from None
    return outcomes
