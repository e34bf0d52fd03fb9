"""Defines what happens to workflows in each status: the stage that takes them, legal changes, deadlines, reactions.

`outbox deploy` writes this into the database (deploy.py), where the triggers read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import NamedTuple, Protocol

from ..checks import check_name
from ..errors import DefinitionError
from ..texts import shown
from .limits import Limits, Path
from .waits.times import LONGEST


class Taker(Protocol):
    """The part of a stage that the routes use."""

    @property
    def name(self) -> str: ...
    @property
    def on(self) -> frozenset[str]: ...
    @property
    def running(self) -> str | None: ...
    @property
    def limits(self) -> Limits | None: ...
    @property
    def changes(self) -> set[tuple[str, str]]: ...


class Route(NamedTuple):
    """What the database does with workflows in a status.

    `stage` takes them, if it isn't None; `running` marks the in-progress status of that stage. After `deadline` seconds
    they move to `on_deadline`. `reactions` names the reactions that run after a change to this status. `partition` and
    `priority` are paths into the data; both are None if the stage is not limited. `notify`: a change to the status
    sends a notification.
    """

    stage: str | None
    running: bool = False
    final: bool = False
    deadline: float | None = None
    on_deadline: str | None = None
    reactions: tuple[str, ...] = ()
    partition: Path | None = None
    priority: Path | None = None
    notify: bool = False

    @property
    def rests(self) -> bool:
        """Whether workflows in the status rest: no stage takes them, and they have not ended."""
        return self.stage is None and not self.final


class Routes:
    """The statuses of a pipeline and the changes between them that stages, people and deadlines make."""

    def __init__(self, pipeline: str, initial: str, final: frozenset[str], cancelled: str | None = None,
        notify: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.final = final
        self.cancelled = cancelled
        self._pipeline = pipeline
        self._initial = initial
        self._takers: dict[str, Taker] = {}
        self._allowed: dict[str, frozenset[str]] = {}
        self._deadlines: dict[str, tuple[timedelta, str]] = {}
        self._reactions: dict[str, list[str]] = {}
        self._notify = notify

    def check(self, stage: Taker) -> None:
        """Raises DefinitionError if another stage has the same name or status, or if the stage takes a final status."""
        if stage.name in self._takers:
            raise DefinitionError(f"pipeline {self._pipeline} has two stages named {stage.name!r}")
        for other in self._takers.values():
            taken = {*other.on, other.running} & {*stage.on, stage.running} - {None}
            if taken:
                twice = min(filter(None, taken))
                raise DefinitionError(f"status {twice} is taken by two stages: {other.name} and {stage.name}")
        for status in (*sorted(stage.on), stage.running):
            if status in self.final:
                raise DefinitionError(f"stage {stage.name} takes {status}, which is final: nothing can follow it")

    def add(self, stage: Taker) -> None:
        """Adds a stage, which from now on takes the workflows in its status."""
        self._takers[stage.name] = stage

    def allow(self, status: str, targets: frozenset[str]) -> None:
        """Makes the changes from a status to each of `targets` legal, for people and other systems."""
        check_name(status, "allow: status")
        if status in targets:
            raise DefinitionError(f"allow: from {status} to itself is not a change")
        if status in self.final:
            raise DefinitionError(f"allow: {status} is final: nothing can follow it")
        self._allowed[status] = self._allowed.get(status, frozenset()) | targets

    def move_after(self, status: str, within: timedelta, to: str) -> None:
        """Moves workflows that have been in a status for the time `within` to the status `to`."""
        if not timedelta(0) < within <= LONGEST:
            raise DefinitionError(f"deadline of {status}: {within} is not a time of up to a hundred years")
        for wrong, why in (
            (status in self.final, "it is final"),
            (status == to, "it leads to itself"),
            (status in self._deadlines, "it has one already"),
        ):
            if wrong:
                raise DefinitionError(f"deadline of {status}: {why}")
        self._deadlines[status] = within, to

    def react(self, status: str, reaction: str) -> None:
        """Runs a reaction after each change to a status."""
        self._reactions.setdefault(status, []).append(reaction)

    def taken_by(self, status: str) -> str | None:
        """Returns the name of the stage whose `on` or `running` is this status. None if there is none."""
        return next((stage.name for stage in self._takers.values() if status in {*stage.on, stage.running}), None)

    def legal_changes(self) -> set[tuple[str, str]]:
        """Returns every legal change as (from, to)."""
        changes = self.changes()
        if self.cancelled is None:
            return changes
        known = {self._initial, *(status for change in changes for status in change)}
        return changes | {(status, self.cancelled) for status in known - self.final}

    def changes(self) -> set[tuple[str, str]]:
        """Returns the legal changes without those by which any workflow can be cancelled."""
        changes = {(source, target) for source, targets in self._allowed.items() for target in targets}
        for stage in self._takers.values():
            changes |= stage.changes
        for status, (_, target) in self._deadlines.items():
            changes |= {(status, target)}
            # The job of a stage keeps its deadline while its handler runs.
            changes |= {
                (stage.running, target) for stage in self._takers.values() if status in stage.on and stage.running
            }
        return changes

    def by_status(self) -> dict[str, Route]:
        """Returns the route of each status that the pipeline knows."""
        known = {self._initial: Route(None, final=self._initial in self.final)}
        for source, target in sorted(self.legal_changes()):
            for status in (source, target):
                known.setdefault(status, Route(None))
        for status in self.final:
            known[status] = Route(None, final=True)
        for stage in self._takers.values():
            of = (stage.limits.partition, stage.limits.priority) if stage.limits else (None, None)
            for status in stage.on:
                known[status] = Route(stage.name, partition=of[0], priority=of[1])
            if stage.running:
                known[stage.running] = Route(stage.name, running=True, partition=of[0], priority=of[1])
        for status, (within, target) in self._deadlines.items():
            known[status] = known[status]._replace(deadline=within.total_seconds(), on_deadline=target)
        for status, names in self._reactions.items():
            if status not in known:
                raise DefinitionError(
                    f"pipeline {self._pipeline}: {names[0]} reacts to {status}, which no change leads to"
                )
            known[status] = known[status]._replace(reactions=tuple(sorted(names)))
        for status in self._notify:
            if status not in known:
                raise DefinitionError(f"pipeline {self._pipeline}: notify names {status}, which no change leads to")
            known[status] = known[status]._replace(notify=True)
        return known


def statuses(names: Iterable[str], what: str) -> frozenset[str]:
    """Returns statuses as a set. Raises DefinitionError, which begins with `what`, for a string or an invalid name."""
    if isinstance(names, str):
        raise DefinitionError(f"{what} must be a set of statuses, not the string {shown(names)}")
    if not isinstance(names, Iterable):
        raise DefinitionError(f"{what} must be statuses, not {shown(names)}")
    return frozenset(check_name(name, what) for name in names)


def targets(to: str | Iterable[str], what: str) -> frozenset[str]:
    """Returns the statuses that a change may lead to as a set. `to` is one status or several."""
    return statuses([to] if isinstance(to, str) else to, what)
