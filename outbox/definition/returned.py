"""Reads what a handler returned: the next status, the data as JSON, and what the workflow waits for."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from .. import texts
from ..errors import HandlerError
from .run import Spawned
from .stage import Stage
from .waits.wait import Wait, WaitJson


class Returned(NamedTuple):
    """The outcome for a workflow. `data` is JSON text, or None if it stays unchanged."""

    status: str
    data: str | None
    wait: WaitJson | None


def read(stage: Stage, result: Any, now: str) -> Returned:
    """Returns what a handler's result means for a workflow whose status is `now`.

    Raises HandlerError if the stage may not lead to the status or nothing could end the wait, and InvalidInput if the
    data can't be stored.
    """
    status: str | None = None
    data, wait = result, None
    if isinstance(result, Wait):
        status, data, wait = result.status, result.data, result.as_wait()
    if status is None and len(stage.to) == 1:
        (status,) = stage.to
    if status is None:
        raise HandlerError(
            f"stage {stage.queue} has several next statuses ({', '.join(sorted(stage.to))}): return Go(status), "
            "or say where to wait with status="
        )
    there = stage.to - {now}
    if not isinstance(status, str) or status not in there:
        where = f"from {now} " if len(stage.on) > 1 else ""
        raise HandlerError(
            f"stage {stage.queue} may not go {where}to {texts.shown(status)}, only to {', '.join(sorted(there))}"
        )
    if wait is not None:
        _check(stage, status, result)
    if data is None:
        return Returned(status, None, wait)
    if inspect.isawaitable(data) or inspect.isgenerator(data) or inspect.isasyncgen(data):
        if inspect.iscoroutine(data):
            data.close()
        raise HandlerError(f"stage {stage.queue} returned a {type(data).__name__}: return data, Go(…) or None")
    if isinstance(data, Spawned):
        raise HandlerError(f"stage {stage.queue} returned what run.spawn returns: return data, Go(…), a wait or None")
    return Returned(status, stage.data.dump(data), wait)


def _check(stage: Stage, status: str, wait: Wait[Any]) -> None:
    """Raises HandlerError if a workflow can't wait in `status`, or if the end of the wait can't move it on."""
    taken = stage.routes.taken_by(status)
    if wait.delays_a_stage:
        if taken is None:
            raise HandlerError(f"stage {stage.queue} puts {status} off, but no stage takes it: nothing would run then")
    elif taken is not None or status in stage.routes.final:
        what = f"stage {taken} takes it" if taken else "it is final"
        raise HandlerError(f"stage {stage.queue} can't wait in {status}: {what}")
    legal = stage.routes.legal_changes()
    for target in wait.leads_to:
        if (status, target) not in legal:
            raise HandlerError(
                f"stage {stage.queue} waits in {status} for what leads to {texts.shown(target)}, "
                f'which is not a legal change: add allow("{status}", to=…) to the pipeline, and deploy it'
            )
