"""A pipeline: its statuses, the legal changes between them, and the stages that take them.

It is a definition, checked when it is made; `outbox deploy` writes it into the database (see deploy.py), where
the triggers enforce it for everyone.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar, overload
from uuid import UUID

import psycopg
from pydantic import BaseModel

from .. import texts
from ..checks import check_name, check_number, check_whole
from ..client.submit import Submitted, submit, submit_many
from ..errors import DefinitionError
from . import limits, schedule
from .data import DataType
from .outcome import Backoff
from .stage import Stage
from .waits import LONGEST

Data = TypeVar("Data")
Handler = TypeVar("Handler", bound=Callable[..., Any])


class Change(BaseModel):
    """A change of a workflow's status, as a reaction is given it. `data` is what the workflow's data was then."""

    pipeline: str
    entity_id: str
    workflow_id: UUID
    from_status: str | None
    status: str
    version: int
    actor: str
    reason: str | None
    at: datetime
    data: Any


class Route(NamedTuple):
    """What becomes of workflows in a status: the stage that takes them or None, and a deadline in seconds or None.

    `partition` and `priority` lead into the data; both are None where the stage is not limited.
    """

    stage: str | None
    running: bool = False
    final: bool = False
    deadline: float | None = None
    on_deadline: str | None = None
    reactions: tuple[str, ...] = ()
    partition: limits.Path | None = None
    priority: limits.Path | None = None


class Pipeline(Generic[Data]):
    """Named statuses, legal changes and stages; `data` is the model that a workflow's metadata must fit.

    `data` is a pydantic model or any type that pydantic validates (default: a plain JSON object). A workflow
    starts in `initial`; in a status of `final` it has ended. All other statuses come from stages and `allow`.
    `version` is that of the data's type; see `migrate_data`.
    """

    # data=Post makes a Pipeline[Post]; a type that is no class, such as a union, is Any to a type checker.
    @overload
    def __init__(
        self, name: str, *, data: type[Data], initial: str, final: Iterable[str] = (), version: int = 1
    ) -> None: ...
    @overload
    def __init__(
        self: Pipeline[dict[str, Any]], name: str, *, data: None = None, initial: str, final: Iterable[str] = (),
        version: int = 1,
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Pipeline[Any], name: str, *, data: Any, initial: str, final: Iterable[str] = (), version: int = 1
    ) -> None: ...
    def __init__(
        self, name: str, *, data: Any = None, initial: str, final: Iterable[str] = (), version: int = 1
    ) -> None:
        self.name = check_name(name, "pipeline")
        self.initial = check_name(initial, "initial status")
        self.final = _statuses(final, "final")
        self.stages: dict[str, Stage] = {}
        self._allowed: dict[str, frozenset[str]] = {}
        self.schedules: dict[str, schedule.Schedule] = {}
        self.reactions: dict[str, Pipeline[Change]] = {}
        self.reaction_of: str | None = None
        self._reacting: dict[str, list[str]] = {}
        self._deadlines: dict[str, tuple[timedelta, str]] = {}
        self._data = DataType(name, data, version)

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, stages={list(self.stages)})"

    def stage(
        self,
        name: str,
        *,
        on: str,
        to: str | Iterable[str],
        retry: Backoff | None = None,
        timeout: float = 60.0,
        transaction: bool = False,
        batch: int | None = None,
        running: str | None = None,
        concurrency: int | None = None,
        rate: str | None = None,
        partition: Callable[[Data], Any] | str | None = None,
        priority: Callable[[Data], Any] | str | None = None,
        total_concurrency: int | None = None,
        total_rate: str | None = None,
    ) -> Callable[[Handler], Handler]:
        """Make the decorated function the handler of workflows in status `on`.

        It gets a `Run` and returns new data, `Go(status, data)`, or None for unchanged data. `timeout` is in
        seconds for one attempt. With
        `transaction=True` the handler gets `run.connection`, whose writes commit with the status change.
        With `batch=100` besides, it gets a list of up to 100 runs that share one transaction, and returns None
        or a list with what each run's handler would return. If it raises, all is rolled back and each workflow
        gets a transaction, and a list, of its own.
        `running` names an in-progress status that is stored while the handler runs.

        Over all workers together, at most `concurrency` workflows are with handlers at once, and attempts begin at most
        at `rate` ("14/second", "100/minute"), exactly so in every window of a second and more. With
        `partition=lambda d: d.customer` both are for each customer, `total_concurrency` and `total_rate` for all, and
        customers have their turn one after the other. `priority=lambda d: d.urgency`: the highest first, within the
        partition. Both name a field of the data, which whoever writes the data sets. See docs/limits.md.
        """
        check_name(name, "stage")
        check_name(on, f"stage {name}: status on=")
        targets = _statuses([to] if isinstance(to, str) else to, f"stage {name}: to=")
        if not targets:
            raise DefinitionError(f"stage {name}: to= is empty; a stage moves its workflow to another status")
        if on in targets:
            raise DefinitionError(f"stage {name}: from {on} to itself is no change; raise Retry to try again")
        if running is not None and check_name(running, f"stage {name}: running=") in {
            on,
            *targets,
            *self.final,
        }:
            raise DefinitionError(f"stage {name}: running={running!r} must be a status of its own")
        if name in self.stages:
            raise DefinitionError(f"pipeline {self.name} has two stages named {name!r}")
        for other in self.stages.values():
            taken = {other.on, other.running} & {on, running} - {None}
            if taken:
                raise DefinitionError(f"status {taken.pop()} is taken by two stages: {other.name} and {name}")
        for status in (on, running):
            if status in self.final:
                raise DefinitionError(f"stage {name} takes {status}, which is final: nothing can follow it")
        if retry is not None and not isinstance(retry, Backoff):
            raise DefinitionError(f"stage {name}: retry={texts.shown(retry)} is no Backoff")
        if not isinstance(transaction, bool):
            raise DefinitionError(f"stage {name}: transaction={texts.shown(transaction)} is neither True nor False")
        check_number(timeout, f"stage {name}: timeout", 0.001, 1e8)
        if batch is not None:
            check_whole(batch, f"stage {name}: batch=", 1_000)
        limited = limits.check(name, concurrency, rate, partition, priority, total_concurrency, total_rate)
        for path in (limited.partition, limited.priority) if limited else ():
            self._data.require_field(path, f"stage {name}")
        if batch is not None and not transaction:
            raise DefinitionError(f"stage {name}: batch={batch} is for stages with transaction=True")

        def register(handler: Handler) -> Handler:
            if not callable(handler) or inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
                raise DefinitionError(f"stage {name}: the handler must be a function that takes a Run and returns")
            self.stages[name] = Stage(
                pipeline=self,
                name=name,
                handler=handler,
                on=on,
                to=targets,
                retry=retry or Backoff(),
                timeout=float(timeout),
                limits=limited,
                transaction=transaction,
                batch=batch,
                running=running,
                is_async=inspect.iscoroutinefunction(handler)
                or inspect.iscoroutinefunction(getattr(handler, "__call__", None)),  # noqa: B004 - an object
            )
            return handler

        return register

    def allow(self, status: str, *, to: str | Iterable[str]) -> None:
        """Make changes legal that people or other systems make: from `status` to each of `to`."""
        check_name(status, "allow: status")
        targets = _statuses([to] if isinstance(to, str) else to, "allow: to=")
        if status in targets:
            raise DefinitionError(f"allow: from {status} to itself is no change")
        if status in self.final:
            raise DefinitionError(f"allow: {status} is final: nothing can follow it")
        self._allowed[status] = self._allowed.get(status, frozenset()) | targets

    def deadline(
        self, status: str, *, to: str, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """Move a workflow from `status` to `to` when it has stood there so long, whatever its stage does meanwhile.

        It counts from the change to that status, for all who come there after the next deploy. What a handler sets for
        its own wait comes before it. A job that is dead has no deadline: a person has it then.
        """
        check_name(status, "deadline: status")
        check_name(to, "deadline: to=")
        try:
            within = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        except (TypeError, ValueError, OverflowError):
            raise DefinitionError(f"deadline of {status}: days, hours, minutes and seconds must be numbers") from None
        if not timedelta(0) < within <= LONGEST:
            raise DefinitionError(f"deadline of {status}: {within} is not a time of up to a hundred years")
        if status in self.final or status == to or status in self._deadlines:
            why = {status in self.final: "it is final", status == to: "it leads to itself"}.get(
                True, "it has one already"
            )
            raise DefinitionError(f"deadline of {status}: {why}")
        self._deadlines[status] = within, to

    def every(
        self, cron: str, *, name: str | None = None, timezone: str = "UTC", missed: str = "skip", timeout: float = 60.0
    ) -> Callable[[Handler], Handler]:
        """Run the decorated function by the clock, each tick once, whichever worker is quicker.

        It gets a `Tick`; what it writes through `tick.connection`, such as workflows that it submits, commits with the
        tick. `cron` has minute, hour, day, month, day of the week, in `timezone`. If it raises, the tick is tried
        again. Ticks that were `missed` while no worker ran: "skip" runs the last of them, "catch up" each, in order.
        Workers that aren't limited to some stages run it.
        """

        def register(function: Handler) -> Handler:
            called = check_name(name or getattr(function, "__name__", None), "schedule")
            if called in self.schedules:
                raise DefinitionError(f"pipeline {self.name} has two schedules named {called!r}")
            check_number(timeout, f"schedule {called}: timeout", 0.001, 86_400)
            self.schedules[called] = schedule.check(self.name, called, cron, timezone, missed, float(timeout), function)
            return function

        return register

    def on_change(
        self,
        *statuses: str,
        name: str | None = None,
        retry: Backoff | None = None,
        timeout: float = 60.0,
        concurrency: int | None = None,
        rate: str | None = None,
    ) -> Callable[[Handler], Handler]:
        """Run the decorated function after each change to one of `statuses`, at least once, whoever makes the change.

        It gets a `Run` whose data is the `Change`, and returns nothing. It is no step of the workflow, which goes on
        whatever becomes of it: several reactions to one change have their own attempts and dead jobs each. They are
        pipelines, `PIPELINE/NAME`, with a workflow for each change, which is kept for a week when it is done.
        """
        if not statuses:
            raise DefinitionError("on_change: name at least one status")
        for status in statuses:
            check_name(status, "on_change: status")

        def register(function: Handler) -> Handler:
            called = check_name(name or getattr(function, "__name__", None), "on_change: name=")
            if called in self.reactions or "," in called:
                raise DefinitionError(f"pipeline {self.name} has two reactions named {called!r}")
            reaction = Pipeline(f"{self.name}/{called}", data=Change, initial="DUE", final={"DONE"})
            reaction.stage(
                called, on="DUE", to="DONE", retry=retry, timeout=timeout, concurrency=concurrency, rate=rate
            )(function)
            reaction.reaction_of = self.name
            self.reactions[called] = reaction
            for status in statuses:
                self._reacting.setdefault(status, []).append(called)
            return function

        return register

    def taken_by(self, status: str) -> str | None:
        """Return the name of the stage that takes workflows in a status, or is at work on them; None: nobody does."""
        return next((stage.name for stage in self.stages.values() if status in (stage.on, stage.running)), None)

    # What deploy writes.

    def routes(self) -> dict[str, Route]:
        """Return what becomes of each status that the pipeline knows."""
        known: dict[str, Route] = {self.initial: Route(None, final=self.initial in self.final)}
        for source, target in sorted(self.legal_changes()):
            for status in (source, target):
                known.setdefault(status, Route(None))
        for status in self.final:
            known[status] = Route(None, final=True)
        for stage in self.stages.values():
            of = (stage.limits.partition, stage.limits.priority) if stage.limits else (None, None)
            known[stage.on] = Route(stage.name, partition=of[0], priority=of[1])
            if stage.running:
                known[stage.running] = Route(stage.name, running=True, partition=of[0], priority=of[1])
        for status, (within, target) in self._deadlines.items():
            known[status] = known[status]._replace(deadline=within.total_seconds(), on_deadline=target)
        for status, names in self._reacting.items():
            if status not in known:
                raise DefinitionError(f"pipeline {self.name}: {names[0]} reacts to {status}, which no change leads to")
            known[status] = known[status]._replace(reactions=tuple(sorted(names)))
        return known

    def legal_changes(self) -> set[tuple[str, str]]:
        """Return every legal (from, to)."""
        changes = {(source, target) for source, targets in self._allowed.items() for target in targets}
        for stage in self.stages.values():
            changes |= {(stage.on, target) for target in stage.to}
            if stage.running:
                changes |= {(stage.running, target) for target in stage.to} | {(stage.on, stage.running)}
        for status, (_, target) in self._deadlines.items():
            changes |= {(status, target)}
            # The job of a stage keeps its deadline while a handler is at work.
            changes |= {
                (stage.running, target) for stage in self.stages.values() if stage.on == status and stage.running
            }
        return changes

    # Data, validated on its way in and out.

    def dump(self, data: Any) -> str:
        """Return `data` as JSON text, validated; else InvalidInput."""
        return self._data.dump(data)

    def dump_readable(self, data: Any) -> str:
        """The same for what is submitted: what the model itself couldn't read back is refused, not dead later."""
        return self._data.dump_readable(data)

    def load(self, text: str) -> Data:
        """Return stored JSON text as the pipeline's data type; else pydantic's ValidationError."""
        data: Data = self._data.load(text)
        return data

    def migrate_data(self, from_version: int, upgrade: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Read data that was stored by version `from_version` of the pipeline's type through `upgrade`.

        It is given the document and returns it as that of the next version. What a handler returns is stored as the
        pipeline's own `version`; data that is only read stays as it is.
        """
        self._data.upgrade(from_version, upgrade)

    # Step 1: see submit.py.

    @overload
    def submit(
        self, conn: psycopg.AsyncConnection[Any], entity_id: str, data: Data | Mapping[str, Any]
    ) -> Coroutine[Any, Any, Submitted]: ...
    @overload
    def submit(self, conn: psycopg.Connection[Any], entity_id: str, data: Data | Mapping[str, Any]) -> Submitted: ...
    def submit(
        self, conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], entity_id: str, data: Any
    ) -> Submitted | Awaitable[Submitted]:
        """Start a workflow in the caller's transaction; awaited on an async connection.

        Returns the workflow, `created` False if the entity was there already, which is no error and changes
        nothing. InvalidInput before any SQL if the id or the data can't be stored; NotDeployed if the database
        doesn't know the pipeline.
        """
        submitted: Submitted | Awaitable[Submitted] = submit(self.name, self.dump_readable, conn, entity_id, data)
        return submitted

    @overload
    def submit_many(
        self, conn: psycopg.AsyncConnection[Any], items: Iterable[tuple[str, Any]]
    ) -> Coroutine[Any, Any, int]: ...
    @overload
    def submit_many(self, conn: psycopg.Connection[Any], items: Iterable[tuple[str, Any]]) -> int: ...
    def submit_many(
        self, conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], items: Iterable[tuple[str, Any]]
    ) -> int | Awaitable[int]:
        """Start many workflows, given as (entity_id, data), in the caller's transaction and bounded memory.

        Returns how many are new. All or nothing is the caller's transaction; entities that exist are left alone.
        """
        started: int | Awaitable[int] = submit_many(self.name, self.dump_readable, conn, items)
        return started


def _statuses(names: Iterable[str], what: str) -> frozenset[str]:
    if isinstance(names, str):
        raise DefinitionError(f"{what} must be a set of statuses, not the string {texts.shown(names)}")
    if not isinstance(names, Iterable):
        raise DefinitionError(f"{what} must be statuses, not {texts.shown(names)}")
    return frozenset(check_name(name, what) for name in names)
