"""Keeps the handlers that run in this process, and counts the slots lost to those that don't end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import WorkerBroken
from ..texts import printable
from .job import Job
from .lane import Lane, Lanes

log = logging.getLogger("outbox.worker")

LOOK_EVERY = 0.2
"""Seconds between two checks for handlers that go on although their attempt no longer counts."""

LOST_AFTER = 5.0
"""Seconds after which such a handler's slot is given up, or its stage's timeout if that is longer. Most end, late."""


@dataclass(slots=True)
class _Handler:
    """A running handler. `overdue`: its attempt no longer counts. `lost`: it is so late that its slot is given up."""

    lane: Lane
    jobs: list[Job]
    overdue: bool = False
    lost: bool = False

    @property
    def name(self) -> str:
        return f"{self.lane.stage.queue} {named(self.jobs)}"


class Handlers:
    """The handlers that were called and have not returned, by task."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._at_work: dict[asyncio.Task[Any], _Handler] = {}
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._look_at = 0.0

    def begin(self, task: asyncio.Task[Any], lane: Lane, jobs: list[Job]) -> None:
        """Records that a task runs the handler of these jobs."""
        self._at_work[task] = _Handler(lane, jobs)

    def end(self) -> None:
        """Records that the handler of the running task has returned."""
        task = asyncio.current_task()
        handler = self._at_work.pop(task, None) if task is not None else None
        if handler is not None and handler.overdue:
            handler.lane.overdue -= 1
            if handler.lost:
                log.warning("%s has ended after all; its slot is free", handler.name)

    def of(self, task: asyncio.Task[Any]) -> tuple[str, list[Job]] | None:
        """Returns the name and the jobs of the handler that runs in this task; None if there is none."""
        handler = self._at_work.get(task)
        return None if handler is None else (handler.name, handler.jobs)

    def left(self) -> list[str]:
        """Returns the names of the handlers that are still running."""
        return [handler.name for handler in self._at_work.values()]

    async def ended(self, within: float) -> None:
        """Waits until the cancelled async handlers have ended, for at most `within` seconds."""
        if tasks := [task for task, handler in self._at_work.items() if handler.lane.stage.is_async]:
            await asyncio.wait(tasks, timeout=within)

    async def broken(self) -> None:
        """Waits until a stage has no slot left, and raises WorkerBroken: this process can't go on."""
        await asyncio.shield(self._broken)

    def look_for_lost(self, now: float) -> list[Lane]:
        """Counts the handlers that go on although their attempts no longer count, and logs lost slots.

        Returns the lanes whose jobs wait behind such handlers only.
        """
        if now < self._look_at:
            return []
        self._look_at = now + LOOK_EVERY
        lost: Counter[Lane] = Counter()
        for task, handler in self._at_work.items():
            if all(job.lost is not None for job in handler.jobs):
                lost[handler.lane] += self._is_lost(task, handler, lost[handler.lane] + 1, now)
        for lane, number in lost.items():
            if number >= lane.concurrency and not self._broken.done():
                self._broken.set_exception(self._no_slot_left(lane))
                self._broken.exception()  # marks it as retrieved, in case nothing awaits it
        return [lane for lane in self._lanes.values() if lane.blocked and lane.waiting]

    def _is_lost(self, task: asyncio.Task[Any], handler: _Handler, number: int, now: float) -> bool:
        """Returns whether a late handler's slot is given up; logs it the first time, as the lane's `number`th."""
        lane = handler.lane
        if not handler.overdue:
            handler.overdue = True
            lane.overdue += 1
        if now - max(job.lost_at for job in handler.jobs) <= lost_after(lane):
            return False
        if not handler.lost:
            handler.lost = True
            how = "swallows its cancellation" if lane.stage.is_async else "hangs in its thread"
            log.error(
                "%s %s; its slot is lost (%s of %s)", handler.name, how, number, lane.concurrency,
                extra={"stages": lane.stage.queue, "lost_slots": number, "slots": lane.concurrency},
            )  # fmt: skip
            if lane.stage.is_async:
                task.cancel()  # once more, because `wait_for` of Python 3.11 may lose a cancellation
        return True

    def _no_slot_left(self, lane: Lane) -> WorkerBroken:
        names = ", ".join(named(handler.jobs) for handler in self._at_work.values() if handler.lane is lane)
        return WorkerBroken(
            f"stage {lane.stage.queue} has no slot left: its handlers don't end ({names}); start a new process"
        )


def lost_after(lane: Lane) -> float:
    """Returns the seconds after which a late handler of this lane loses its slot."""
    return max(LOST_AFTER, lane.stage.timeout)


def named(jobs: Sequence[Job]) -> str:
    """Returns the entities of these jobs in words."""
    others = f" and {len(jobs) - 1} others" if len(jobs) > 1 else ""
    return printable(jobs[0].entity_id) + others


def where(job: Job) -> str:
    """Returns the stage and the entity of a job in words."""
    return f"{job.stage.queue} {printable(job.entity_id)}"
