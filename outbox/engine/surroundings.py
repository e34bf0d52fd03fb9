"""Has a worker's handlers called with what runs around them: its own hooks, and those of its pipelines."""

from __future__ import annotations

import inspect
from dataclasses import replace

from ..definition import hooks
from ..definition.hooks import NO_HOOKS, Hooks
from ..definition.schedule import Schedule
from ..definition.stage import Stage


class Surroundings:
    """Makes stages and schedules of a worker out of those of its pipelines. `own` are the worker's hooks."""

    def __init__(self, own: Hooks = NO_HOOKS) -> None:
        self._own = own

    def stage(self, stage: Stage) -> Stage:
        """Returns the stage as this worker runs it, which is the stage itself if there are no hooks."""
        around = self._own.around + stage.hooks.around
        if not around:
            return stage
        return stage.handled_by(
            hooks.surround(stage.handler, is_async=stage.is_async, around=around, name=f"the handler of {stage.queue}")
        )

    def schedule(self, schedule: Schedule) -> Schedule:
        """Returns the schedule as this worker runs it."""
        around = self._own.around + schedule.hooks.around
        if not around:
            return schedule
        is_async = inspect.iscoroutinefunction(schedule.function)
        name = f"the function of {schedule.label}"
        return replace(
            schedule, function=hooks.surround(schedule.function, is_async=is_async, around=around, name=name)
        )
