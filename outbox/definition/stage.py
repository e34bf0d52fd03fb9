"""A stage: who takes workflows of a status, and what becomes of what its handler returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import texts
from ..errors import HandlerError
from .limits import Limits
from .outcome import Backoff, Go
from .waits import Wait, WaitForApproval, WaitForChildren, WaitForSignal, later

if TYPE_CHECKING:
    from .pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Stage:
    """A named handler that takes workflows of one status. Made by `Pipeline.stage`."""

    pipeline: Pipeline[Any] = field(repr=False)
    name: str
    handler: Callable[..., Any] = field(repr=False)
    on: str
    to: frozenset[str]
    retry: Backoff
    timeout: float
    transaction: bool
    batch: int | None
    running: str | None
    is_async: bool
    limits: Limits | None = None

    @property
    def queue(self) -> str:
        """How a worker's row names the stage: `posts.enrich`."""
        return f"{self.pipeline.name}.{self.name}"

    def outcome(self, result: Any) -> tuple[str, str | None, Wait | None]:
        """Return of what a handler returned: the next status, new data as JSON (None: unchanged), what it waits for."""
        status: str | None = None
        wait: Wait | None = None
        returned = result
        if isinstance(result, Go):
            status, wait, result = result.status, later(result.after, result.at), result.data
        elif isinstance(result, WaitForApproval | WaitForSignal | WaitForChildren):
            status, wait, result = result.status, result.as_wait(), result.data
        if status is None and len(self.to) == 1:
            (status,) = self.to
        if status is None:
            raise HandlerError(
                f"stage {self.queue} has several next statuses ({', '.join(sorted(self.to))}): return Go(status), "
                "or say where to wait with status="
            )
        if not isinstance(status, str) or status not in self.to:
            legal = ", ".join(sorted(self.to))
            raise HandlerError(f"stage {self.queue} may not go to {texts.shown(status)}, only to {legal}")
        if wait is not None:
            self._check_wait(status, returned)
        if result is None:
            return status, None, wait
        if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
            if inspect.iscoroutine(result):
                result.close()
            raise HandlerError(f"stage {self.queue} returned a {type(result).__name__}: return data, Go(…) or None")
        return status, self.pipeline.dump(result), wait

    def _check_wait(self, status: str, returned: Any) -> None:
        taken = self.pipeline.taken_by(status)
        if isinstance(returned, Go):
            if taken is None:
                raise HandlerError(
                    f"stage {self.queue} puts {status} off, but no stage takes it: nothing would run then"
                )
            return
        if taken is not None or status in self.pipeline.final:
            what = f"stage {taken} takes it" if taken else "it is final"
            raise HandlerError(f"stage {self.queue} can't wait in {status}: {what}")
        legal = self.pipeline.legal_changes()
        for target in returned.leads_to:
            if (status, target) not in legal:
                raise HandlerError(
                    f"stage {self.queue} waits in {status} for what leads to {texts.shown(target)}, "
                    f'which is no legal change: add allow("{status}", to=…) to the pipeline, and deploy it'
                )
