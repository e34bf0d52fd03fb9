"""Wakes the claimer when there is work or room, and the maintenance when a job is due before its next tick.

Signs of work are notifications, jobs that this process has made itself, and jobs that came back. A sign counts until
the next claim begins, because that claim sees the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from .lane import Lane, Lanes
from .notices import Notices

NEW = "new"
"""What a notification says of jobs that were just made. Any other may be of jobs that came back, with old ids."""


class Wakeups:
    """Holds the signs that have come since the last claim, and what they wake.

    `idle`: the claimer has asked the database to notify it of jobs. `announced`: a notification of new jobs came
    before the last claim. `next_due` is when maintenance ticks next (seconds of the monotonic clock).
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self.idle, self.notices = False, Notices()
        self.announced = self._told = False  # a notification of new jobs came: before the last claim; since
        self.next_due, self.due_sooner = float("inf"), asyncio.Event()
        self._woken, self._roomy = asyncio.Event(), asyncio.Event()

    @property
    def pending(self) -> bool:
        """Whether a sign of work has come since the last claim began."""
        return self._woken.is_set()

    def claiming(self) -> None:
        """Forgets the signs so far, because the claim that follows sees the work that they announced."""
        self._woken.clear()
        self.announced, self._told = self._told, False

    def wake(self, *, returned: bool = True) -> None:
        """Makes the claimer look for work now. `returned`: a job may have come back, with an old id."""
        if returned:
            for lane in self._lanes.values():
                lane.scan.reset()
            self._lift_limits(list(self._lanes.values()))
        self._woken.set()

    def wake_for_new(self) -> None:
        """Makes the claimer look for new jobs, which have higher ids than those that it has seen."""
        # It may be of a partition that isn't at its limit. Under load, claims at the limit's own pace find it.
        if self.idle:
            self._lift_limits(list(self._lanes.values()))
        self.wake(returned=False)

    def notified(self, what: str) -> None:
        """Counts a notification, and makes the claimer look: for new jobs, or also for those that came back."""
        self.notices.heard(time.monotonic())
        if what == NEW:
            self._told = True
            self.wake_for_new()
        else:
            self.wake()

    def due_in(self, seconds: float) -> None:
        """Makes maintenance tick when a job of this process is due, if that is before its next tick."""
        at = time.monotonic() + seconds
        if at < self.next_due:
            self.next_due = at
            self.due_sooner.set()

    def room(self) -> None:
        """Makes the claimer look whether lanes have room."""
        self._roomy.set()

    def limits_released(self) -> None:
        """Lets claims go on for stages that were at their limit, because some of their jobs are no longer held."""
        self._lift_limits([lane for lane in self._lanes.values() if lane.stage.limits and lane.stage.limits.crowded])

    async def until_work(self, seconds: float) -> bool:
        """Waits for a sign of work, or until the limits let more jobs start; returns whether a sign came."""
        return await _until(self._woken, min(seconds, self._lanes.held_for() or seconds))

    async def until_room(self, seconds: float | None) -> None:
        """Waits until there may be more room than now, for at most `seconds` (None: no limit)."""
        self._roomy.clear()
        await _until(self._roomy, seconds)

    def _lift_limits(self, lanes: Sequence[Lane]) -> None:
        held = [lane for lane in lanes if lane.held_until]
        for lane in held:
            lane.held_until = 0.0
        if held:
            self._woken.set()
            self._roomy.set()


async def _until(event: asyncio.Event, seconds: float | None) -> bool:
    """Waits for an event for at most `seconds` (None: no limit); returns whether it came."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # `wait_for` of Python 3.11 loses a cancellation that meets the event
            await event.wait()
        return True
    return False
