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


@dataclass(slots=True, eq=False)
class Handler:
    """A running handler, and the task in which it runs, if it does.

    `overdue`: its attempt no longer counts. `lost`: it is so late that its slot is given up.
    """

    lane: Lane
    jobs: list[Job]
    task: asyncio.Task[Any] | None = None
    overdue: bool = False
    lost: bool = False

    @property
    def name(self) -> str:
        return f"{self.lane.stage.queue} {named(self.jobs)}"


class Handlers:
    """The handlers that were called and have not returned."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._at_work: dict[Handler, None] = {}  # in the order of their calls
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._look_at = 0.0

    def begin(self, lane: Lane, jobs: list[Job]) -> Handler:
        """Records that the handler of these jobs is called."""
        handler = Handler(lane, jobs)
        self._at_work[handler] = None
        return handler

    def end(self, handler: Handler) -> None:
        """Records that a handler has returned."""
        del self._at_work[handler]
        if handler.overdue:
            handler.lane.overdue -= 1
            if handler.lost:
                log.warning("%s has ended after all; its slot is free", handler.name)

    def of(self, task: asyncio.Task[Any]) -> tuple[str, list[Job]] | None:
        """Returns the name and the jobs of the handler that runs in this task; None if there is none."""
        at_work = ((each, [job for job in each.jobs if job.task is task]) for each in self._at_work)  # or in turns
        return next(((each.name, some or each.jobs) for each, some in at_work if some or each.task is task), None)

    def left(self) -> list[str]:
        """Returns the names of the handlers that are still running."""
        return [handler.name for handler in self._at_work]

    async def ended(self, within: float) -> None:
        """Waits until the cancelled async handlers have ended, for at most `within` seconds."""
        if tasks := [each.task for each in self._at_work if each.task is not None and each.lane.stage.is_async]:
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
        for handler in self._at_work:
            if all(job.lost is not None for job in handler.jobs):
                lost[handler.lane] += self._is_lost(handler, lost[handler.lane] + 1, now)
        for lane, number in lost.items():
            if number >= lane.concurrency and not self._broken.done():
                self._broken.set_exception(self._no_slot_left(lane))
                self._broken.exception()  # marks it as retrieved, in case nothing awaits it
        return [lane for lane in self._lanes.values() if lane.blocked and lane.waiting]

    def _is_lost(self, handler: Handler, number: int, now: float) -> bool:
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
            if lane.stage.is_async and handler.task is not None:
                handler.task.cancel()  # once more, because `wait_for` of Python 3.11 may lose a cancellation
        return True

    def _no_slot_left(self, lane: Lane) -> WorkerBroken:
        names = ", ".join(named(handler.jobs) for handler in self._at_work if handler.lane is lane)
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
