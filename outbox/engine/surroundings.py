"""Has a worker's handlers called with what runs around them: its own hooks, and those of its pipelines."""

from __future__ import annotations

import inspect
from dataclasses import replace

from ..definition.hooks import EVERYWHERE, NO_HOOKS, Hooks, surround
from ..definition.lifespan import Lifespans
from ..definition.schedule import Schedule
from ..definition.stage import Stage


class Surroundings:
    """Makes the stages and schedules of a worker out of those of its pipelines. `own` are the worker's hooks."""

    def __init__(self, own: Hooks = NO_HOOKS) -> None:
        self._own = own
        self.lifespans = Lifespans()

    def stage(self, stage: Stage) -> Stage:
        """Returns the stage as this worker runs it, which is the stage itself if there are no hooks."""
        hooks = stage.hooks.within(self._own)
        if hooks == NO_HOOKS and not EVERYWHERE:
            return stage
        name = f"the handler of {stage.queue}"
        handler = surround(stage.handler, is_async=stage.is_async, hooks=hooks, lifespans=self.lifespans, name=name)
        return replace(stage, handler=handler, hooks=hooks)

    def schedule(self, schedule: Schedule) -> Schedule:
        """Returns the schedule as this worker runs it."""
        hooks = schedule.hooks.within(self._own)
        if hooks == NO_HOOKS and not EVERYWHERE:
            return schedule
        is_async, name = inspect.iscoroutinefunction(schedule.function), f"the function of {schedule.label}"
        function = surround(schedule.function, is_async=is_async, hooks=hooks, lifespans=self.lifespans, name=name)
        return replace(schedule, function=function, hooks=hooks)
