"""Works out what a deploy means for the workflows that are there: which statuses, changes and stages are not as before.

Statuses are named as they were before the deploy, unless something else is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import DefinitionError
from .deployed import Definition
from .pipeline import Pipeline
from .routes import Route


def check(pipeline: Pipeline[Any]) -> None:
    """Raises DefinitionError if what the pipeline says of its deploy doesn't fit the rest of its definition."""
    pipeline.check_plain()
    routes = pipeline.routes()
    for status in sorted(pipeline.taken_over):
        if (route := routes.get(status)) is None or route.stage is None:
            raise DefinitionError(f"pipeline {pipeline.name}: take_over: no stage takes {status}")


@dataclass(frozen=True, slots=True)
class Transition:
    """The step from a pipeline's deployed definition to the next one."""

    old: Definition
    new: Definition

    def changes(self) -> list[str]:
        """Returns in words what a deploy would change. Empty if nothing."""
        renamed = self.renamed
        lines = [f"status {old} is renamed to {now}" for old, now in renamed.items()]
        told = {
            line
            for old, now in renamed.items()
            for line in (f"status {old} is removed", f"status {now} was called {old}")
        }
        return [*lines, *(line for line in self.old.changes_to(self.new) if line not in told)]

    def now(self, status: str) -> str:
        """Returns what a status is called after the deploy."""
        return self.new.former_names.get(status, status)

    def route(self, status: str) -> Route | None:
        """Returns the route that a status has after the deploy. None if the new definition doesn't know it."""
        return self.new.routes.get(self.now(status))

    @property
    def renamed(self) -> dict[str, str]:
        """The statuses that the deploy renames, with their new names."""
        return {status: self.now(status) for status in sorted(self.old.routes) if self.now(status) != status}

    @property
    def former_names(self) -> dict[str, str]:
        """What statuses were called in any version before, with their new names, unless another has that name now."""
        kept = {former: self.now(now) for former, now in self.old.former_names.items()} | self.new.former_names
        return {former: now for former, now in kept.items() if former not in self.new.routes and now in self.new.routes}

    @property
    def gone(self) -> list[str]:
        """The statuses that the new definition doesn't know."""
        return [status for status in self.old.routes if self.route(status) is None]

    @property
    def rerouted(self) -> list[str]:
        """The statuses that another stage takes, or none, by their new names."""
        return sorted({self.now(status) for status, _ in self._stages_changed()})

    @property
    def resting(self) -> list[str]:
        """The statuses in which workflows rest from now on, or rest no longer, by their new names."""
        return sorted(
            self.now(status)
            for status, route in self.old.routes.items()
            if (now := self.route(status)) is not None and now.rests != route.rests
        )

    @property
    def taken_over(self) -> dict[str, str]:
        """The statuses that no stage took, with the stage that takes them from now on."""
        return {
            status: stage for status, stage in self._stages_changed() if stage and not self.old.routes[status].stage
        }

    @property
    def redirected(self) -> dict[str, tuple[str, str]]:
        """The statuses whose deadline led to a status that is out of reach now, with that one and the new one's target.

        All three are named as after the deploy.
        """
        found = {}
        for status, route in self.old.routes.items():
            now = self.route(status)
            if now and now.on_deadline and route.on_deadline and not self._legal(status, route.on_deadline):
                found[self.now(status)] = self.now(route.on_deadline), now.on_deadline
        return found

    @property
    def illegal(self) -> list[tuple[str, str]]:
        """The changes that are legal no longer. Deadlines that are redirected don't need theirs."""
        return sorted(change for change in self.old.legal if not self._legal(*change))

    def _legal(self, status: str, target: str) -> bool:
        return (self.now(status), self.now(target)) in self.new.legal

    def _stages_changed(self) -> list[tuple[str, str | None]]:
        return [
            (status, now.stage)
            for status, route in self.old.routes.items()
            if (now := self.route(status)) is not None and now.stage != route.stage
        ]
