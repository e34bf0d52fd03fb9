"""Defines a pipeline: its statuses, the legal changes between them, and the stages that take them.

A definition is checked when it is made. `outbox deploy` writes it into the database (deploy.py), where the triggers
enforce it for every client.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, TypeVar, overload

from ..checks import check_name, check_seconds
from ..client import lists
from ..client.cancel import cancel
from ..client.erase import Erased, erase
from ..client.lists import Page, StateChange, Workflow
from ..client.move import move
from ..client.submit import Submitted, submit, submit_many
from ..client.wait import wait, wait_async
from ..database.drivers.connection import AsyncConn, SyncConn
from ..documents import EntityId
from ..errors import DefinitionError, InvalidInput
from ..texts import shown
from . import hooks, limits, schedule
from .data import DataType, HasData
from .failed_attempts import OnError
from .handlers import BatchDecorator, FunctionDecorator, StageDecorator, require_runs, require_takes
from .hooks import Around
from .lifespan import Lifespan
from .outcome import Backoff
from .reactions import Change
from .routes import Route, Routes, statuses, targets
from .run import Run, SyncRun
from .stage import MAX_TIMEOUT, MIN_TIMEOUT, Stage

Data = TypeVar("Data")
Handler = TypeVar("Handler", bound=Callable[..., Any])

_IDLE = "NONE"
"""The only status of a pipeline that has schedules and nothing else. It is final, and no workflow can be submitted."""


class Pipeline(HasData[Data]):
    """Named statuses, legal changes and stages.

    `data` is the type that a workflow's metadata must fit: a pydantic model or any type that pydantic validates, by
    default a plain JSON object. `version` is the version of that type; see `migrate_data`. `plain` is the version of
    data that is written without `$version`, by plain SQL for example. A workflow starts in
    `initial`. In one of the `final` statuses it has ended. All other statuses come from stages and `allow`. `cancelled`
    is a final status to which a workflow can be cancelled from any status that isn't final. A pipeline that has only
    schedules (`every`) needs no `initial`. A change to one of `notify` sends a notification on the channel
    "outbox.status"; see docs/sql.md. With `strict`, data that other programs write is checked in the database: required
    fields, and the JSON types of fields.

    `around` is a function that is given the `Run` of an attempt, or the `Tick` of a schedule, and returns a context
    manager in which the handler is called. Of several, the first one is the outermost. `lifespan` returns a context
    manager that is open while a worker runs in a process; its value is `run.resources`. `on_error` is called with the
    exception and the FailedAttempt when an attempt has failed. See docs/hooks.md.

    Raises DefinitionError for an invalid name, and for a type that pydantic doesn't validate.
    """

    # data=Post makes a Pipeline[Post]. To a type checker, a type that is not a class, such as a union, is Any.
    @overload
    def __init__(
        self, name: str, *, data: type[Data], initial: str | None = None, final: Iterable[str] = (),
        cancelled: str | None = None, version: int = 1, plain: int | None = None, notify: Iterable[str] = (),
        strict: bool = False, around: Around | Iterable[Around] = (), lifespan: Lifespan | None = None,
        on_error: OnError | None = None,
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Pipeline[dict[str, Any]], name: str, *, data: None = None,
        initial: str | None = None, final: Iterable[str] = (),
        cancelled: str | None = None, version: int = 1, plain: int | None = None, notify: Iterable[str] = (),
        strict: bool = False, around: Around | Iterable[Around] = (), lifespan: Lifespan | None = None,
        on_error: OnError | None = None,
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Pipeline[Any], name: str, *, data: Any, initial: str | None = None, final: Iterable[str] = (),
        cancelled: str | None = None, version: int = 1, plain: int | None = None, notify: Iterable[str] = (),
        strict: bool = False, around: Around | Iterable[Around] = (), lifespan: Lifespan | None = None,
        on_error: OnError | None = None,
    ) -> None: ...  # fmt: skip
    def __init__(
        self, name: str, *, data: Any = None, initial: str | None = None, final: Iterable[str] = (),
        cancelled: str | None = None, version: int = 1, plain: int | None = None, notify: Iterable[str] = (),
        strict: bool = False, around: Around | Iterable[Around] = (), lifespan: Lifespan | None = None,
        on_error: OnError | None = None,
    ) -> None:  # fmt: skip
        self.name = check_name(name, "pipeline")
        self.is_idle = initial is None
        self.initial = _IDLE if initial is None else check_name(initial, "initial status")
        self.cancelled = None if cancelled is None else check_name(cancelled, "cancelled")
        self.final = statuses(final, "final") | ({cancelled} if cancelled is not None else frozenset())
        if self.is_idle:
            if self.final:
                raise DefinitionError(f"pipeline {name}: say in which status a workflow starts: initial=")
            self.final = frozenset({_IDLE})
        self.stages: dict[str, Stage] = {}
        self.schedules: dict[str, schedule.Schedule] = {}
        self.reactions: dict[str, Pipeline[Change]] = {}
        self.reaction_of: str | None = None
        self.taken_over: set[str] = set()
        self.renames: dict[str, str] = {}
        self.hooks = hooks.check(f"pipeline {name}: ", around, lifespan, on_error)
        self.notify = statuses(notify, "notify")
        self._routes = Routes(self.name, self.initial, self.final, self.cancelled, self.notify)
        self._data = DataType(name, data, version, plain, strict)

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, stages={list(self.stages)})"

    @overload
    def stage(
        self, name: str, *, on: str | Iterable[str], to: str | Iterable[str], retry: Backoff | None = None,
        timeout: float | timedelta = 60.0, transaction: bool = False, batch: None = None, share: int | None = None,
        running: str | None = None, concurrency: int | None = None, rate: str | None = None,
        partition: Callable[[Data], Any] | str | None = None, priority: Callable[[Data], Any] | str | None = None,
        total_concurrency: int | None = None, total_rate: str | None = None,
    ) -> StageDecorator[Data]: ...  # fmt: skip
    @overload
    def stage(
        self, name: str, *, on: str | Iterable[str], to: str | Iterable[str], retry: Backoff | None = None,
        timeout: float | timedelta = 60.0, transaction: bool = False, batch: int, share: int | None = None,
        running: str | None = None, concurrency: int | None = None, rate: str | None = None,
        partition: Callable[[Data], Any] | str | None = None, priority: Callable[[Data], Any] | str | None = None,
        total_concurrency: int | None = None, total_rate: str | None = None,
    ) -> BatchDecorator[Data]: ...  # fmt: skip
    def stage(
        self,
        name: str,
        *,
        on: str | Iterable[str],
        to: str | Iterable[str],
        retry: Backoff | None = None,
        timeout: float | timedelta = 60.0,
        transaction: bool = False,
        batch: int | None = None,
        share: int | None = None,
        running: str | None = None,
        concurrency: int | None = None,
        rate: str | None = None,
        partition: Callable[[Data], Any] | str | None = None,
        priority: Callable[[Data], Any] | str | None = None,
        total_concurrency: int | None = None,
        total_rate: str | None = None,
    ) -> Any:
        """Makes the decorated function the handler of workflows in status `on`, or in one of several.

        The handler gets a `Run`; `run.status` is the status in which it finds the workflow. It returns new data,
        `Go(status, data)`, something to wait for, or None for unchanged data. `to` names the statuses that the stage
        may lead to. `timeout`, in seconds or as a timedelta, bounds one attempt; `retry` sets when the next one comes.
        `running` names an in-progress status that is stored while the handler runs.

        With `transaction=True`, the handler gets `run.connection`, whose writes commit with the status change. If you
        add `batch=100`, it gets a list of up to 100 runs that share one transaction, and returns None or a list of what
        the handler would return for each run. If it raises, the transaction rolls back, and each workflow is tried
        again in a transaction, and a list, of its own. With `share=50` instead, handlers of waiting workflows take
        turns in one transaction, up to 50 of them while it stays short; each has its run, and fails by itself. See
        docs/sharing.md.

        `concurrency` bounds the attempts that run at once. `rate` ("14/second", "100/minute") bounds the attempts that
        start in any window of a second or more. Both hold across all workers. With `partition=lambda d: d.customer`,
        both are for each customer, `total_concurrency` and `total_rate` are for all, and customers are served in turn.
        With `priority=lambda d: d.urgency`, the highest goes first within its partition. Partition and priority each
        name a field of the data. See docs/limits.md.

        Raises DefinitionError if a value is invalid, the values contradict each other, or the function doesn't take one
        run, or with `batch` one list.
        """
        if self.is_idle:
            raise DefinitionError(
                f"pipeline {self.name}: stage {name}: say in which status a workflow starts: initial="
            )
        made = Stage(
            pipeline=self.name,
            name=check_name(name, "stage"),
            on=targets(on, f"stage {name}: status on="),
            to=targets(to, f"stage {name}: to="),
            retry=Backoff() if retry is None else retry,
            timeout=check_seconds(timeout, f"stage {name}: timeout", MIN_TIMEOUT, MAX_TIMEOUT),
            transaction=transaction,
            batch=batch,
            share=share,
            running=running,
            data=self._data,
            routes=self._routes,
            hooks=self.hooks,
            limits=limits.check(name, concurrency, rate, partition, priority, total_concurrency, total_rate),
        )
        self._routes.check(made)
        for path in (made.limits.partition, made.limits.priority) if made.limits else ():
            self._data.require_field(path, f"stage {name}")

        def register(handler: Handler) -> Handler:
            handled = made.handled_by(handler)
            require_runs(handler, f"stage {name}", batch=batch is not None)
            self.stages[name] = handled
            self._routes.add(made)
            return handler

        return register

    def allow(self, status: str, *, to: str | Iterable[str]) -> None:
        """Makes the changes from `status` to each of `to` legal, for people and other systems."""
        if self.is_idle:
            raise DefinitionError(f"pipeline {self.name}: allow: say in which status a workflow starts: initial=")
        self._routes.allow(status, targets(to, "allow: to="))

    def rename(self, old: str, new: str) -> None:
        """Renames a status of earlier versions when this version is deployed: `new` is what it is called here.

        The workflows in it keep their jobs, questions, waits and deadlines. Their history gets a row with the reason
        `renamed`. Keep the call for as long as a database may have the old name: a second deploy renames nothing.
        """
        check_name(old, "rename: old status")
        check_name(new, "rename: new status")
        if self.renames.get(old, new) != new or old == new:
            raise DefinitionError(f'rename("{old}", "{new}"): it is renamed already, or to itself')
        self.renames[old] = new

    def take_over(self, *statuses: str) -> None:
        """Lets stages of this version end the waits of workflows that wait in these statuses when it is deployed.

        Questions are withdrawn, and signals and children no longer awaited. Deadlines stay. Without this, such a deploy
        is refused.
        """
        self.taken_over |= {check_name(status, "take_over: status") for status in statuses}

    def deadline(
        self, status: str, *, to: str, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """Moves a workflow from `status` to `to` after the given time in `status`, even while its stage is running.

        The time is the sum of `days`, `hours`, `minutes` and `seconds`. It counts from the change to `status`, for
        workflows that reach it after the next deploy. A deadline that a handler sets for its own wait takes precedence.
        A dead job has no deadline, because it waits for a person.
        """
        check_name(status, "deadline: status")
        check_name(to, "deadline: to=")
        try:
            within = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        except (TypeError, ValueError, OverflowError):
            raise DefinitionError(f"deadline of {status}: days, hours, minutes and seconds must be numbers") from None
        self._routes.move_after(status, within, to)

    def every(
        self,
        cron: str,
        *,
        name: str | None = None,
        timezone: str = "UTC",
        missed: str = "skip",
        timeout: float | timedelta = 60.0,
    ) -> FunctionDecorator[schedule.Tick, schedule.SyncTick]:
        """Runs the decorated function on a cron schedule. Each tick runs once, on the first worker to take it.

        The function gets a `Tick`. What it writes through `tick.connection`, such as workflows that it submits,
        commits with the tick. `cron` has minute, hour, day, month and day of the week, in `timezone`. `timeout`, in
        seconds or as a timedelta, bounds one attempt. If the function raises, the tick is tried again. Of the ticks
        that were `missed` while no worker ran, "skip" runs only the last one, and "catch up" runs each, in order. Only
        workers that serve all stages run schedules.
        """

        def register(function: Handler) -> Handler:
            called = name or str(getattr(function, "__name__", ""))
            made = schedule.check(self.name, called, cron, timezone, missed, timeout, function, self.hooks)
            require_takes(function, f"schedule {self.name}.{called}", "a Tick")
            if made.name in self.schedules:
                raise DefinitionError(f"pipeline {self.name} has two schedules named {made.name!r}")
            self.schedules[made.name] = made
            return function

        return register

    def on_change(
        self,
        *statuses: str,
        name: str | None = None,
        retry: Backoff | None = None,
        timeout: float | timedelta = 60.0,
        concurrency: int | None = None,
        rate: str | None = None,
    ) -> FunctionDecorator[Run[Change], SyncRun[Change]]:
        """Runs the decorated function at least once after each change to one of `statuses`, no matter who made it.

        The function gets a `Run` whose data is the `Change`, and returns nothing. It is not a step of the workflow,
        which goes on in any case. Each reaction to a change has its own attempts and dead jobs. A reaction is a
        pipeline of its own, `PIPELINE/NAME`. It has a workflow for each change, which is kept for a week after it has
        ended. `timeout` is in seconds or a timedelta.
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
            reaction.hooks = self.hooks
            reaction.stage(
                called, on="DUE", to="DONE", retry=retry, timeout=timeout, concurrency=concurrency, rate=rate
            )(function)
            reaction.reaction_of = self.name
            self.reactions[called] = reaction
            for status in statuses:
                self._routes.react(status, called)
            return function

        return register

    # Routes and legal changes: see routes.py.

    def routes(self) -> dict[str, Route]:
        """Returns the route of each status that the pipeline knows."""
        return self._routes.by_status()

    def legal_changes(self) -> set[tuple[str, str]]:
        """Returns every legal change as (from, to)."""
        return self._routes.legal_changes()

    def changes(self) -> set[tuple[str, str]]:
        """Returns the legal changes as (from, to), without those by which any workflow can be cancelled."""
        return self._routes.changes()

    # Data: see data.py.

    def data_type(self) -> DataType:
        """Returns the type of the data."""
        return self._data

    @property
    def plain(self) -> int | None:
        """The version of data that is written without `$version`. None if the type has only one version."""
        return self._data.plain

    def check_plain(self) -> None:
        """Raises DefinitionError if the pipeline doesn't say which of several versions data without `$version` has."""
        self._data.check_plain()

    def migrate_data(self, from_version: int, upgrade: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Upgrades data of version `from_version` of the pipeline's type, whenever it is read.

        `upgrade` takes the document and returns it in the form of the next version. What a handler returns is stored
        with the pipeline's own `version`. Data that is only read stays unchanged in the database.
        """
        self._data.upgrade(from_version, upgrade)

    # Submitting: see client/submit.py.

    @overload
    def submit(
        self, conn: AsyncConn, entity_id: EntityId, data: Data | Mapping[str, Any], *, by: str | None = None,
        reason: str | None = None,
    ) -> Coroutine[Any, Any, Submitted]: ...  # fmt: skip
    @overload
    def submit(
        self, conn: SyncConn, entity_id: EntityId, data: Data | Mapping[str, Any], *, by: str | None = None,
        reason: str | None = None,
    ) -> Submitted: ...  # fmt: skip
    def submit(
        self,
        conn: AsyncConn | SyncConn,
        entity_id: EntityId,
        data: Any,
        *,
        by: str | None = None,
        reason: str | None = None,
    ) -> Submitted | Awaitable[Submitted]:
        """Starts a workflow in the caller's transaction. Await it on an async connection.

        Returns the workflow. `created` is False if the entity has one already; that is not an error and changes
        nothing. The history keeps `by` (default: the session's actor) and `reason`.

        Raises InvalidInput, before any SQL, if the id or the data can't be stored, and NotDeployed if the database
        doesn't know the pipeline.
        """
        submitted: Submitted | Awaitable[Submitted] = submit(self, conn, entity_id, data, by, reason)
        return submitted

    @overload
    def submit_many(
        self,
        conn: AsyncConn,
        items: Iterable[tuple[EntityId, Any]],
        *,
        by: str | None = None,
        reason: str | None = None,
    ) -> Coroutine[Any, Any, int]: ...
    @overload
    def submit_many(
        self, conn: SyncConn, items: Iterable[tuple[EntityId, Any]], *, by: str | None = None, reason: str | None = None
    ) -> int: ...
    def submit_many(
        self,
        conn: AsyncConn | SyncConn,
        items: Iterable[tuple[EntityId, Any]],
        *,
        by: str | None = None,
        reason: str | None = None,
    ) -> int | Awaitable[int]:
        """Starts many workflows, given as (entity_id, data), in the caller's transaction and in bounded memory.

        Returns how many are new. Entities that already have a workflow stay unchanged. After an error, the caller's
        transaction decides whether the workflows started before it are kept; on a connection in autocommit, none is.
        The history keeps `by` (default: the session's actor) and `reason`.
        """
        started: int | Awaitable[int] = submit_many(self, conn, items, by, reason)
        return started

    # Cancelling: see client/cancel.py.

    @overload
    def cancel(
        self, conn: AsyncConn, entity_id: EntityId, *, by: str | None = None, reason: str | None = None
    ) -> Coroutine[Any, Any, str]: ...
    @overload
    def cancel(
        self, conn: SyncConn, entity_id: EntityId, *, by: str | None = None, reason: str | None = None
    ) -> str: ...
    def cancel(
        self,
        conn: AsyncConn | SyncConn,
        entity_id: EntityId,
        *,
        by: str | None = None,
        reason: str | None = None,
    ) -> str | Awaitable[str]:
        """Cancels a workflow in the caller's transaction, and returns its status. Await it on an async connection.

        It moves to the pipeline's `cancelled` status. Its job ends, and what a running attempt returns changes nothing;
        its questions and waits end. Children that were spawned with `cancel=` are cancelled, and those that it waits
        for, if their pipelines have a `cancelled` status. `by` (default: the database role) and `reason` are kept in
        the history. A workflow that is cancelled already stays as it is.

        Raises InvalidInput before any SQL if a value can't be stored. The database raises NoWorkflow, NotCancellable
        if the deployed pipeline has no such status, and IllegalChange if the workflow has ended otherwise; like any
        error in a transaction, they end it.
        """
        cancelled: str | Awaitable[str] = cancel(self.name, conn, entity_id, by, reason)
        return cancelled

    # Erasing: see client/erase.py.

    @overload
    def erase(
        self, conn: AsyncConn, entity_id: EntityId, *, by: str | None = None, reason: str | None = None
    ) -> Coroutine[Any, Any, Erased]: ...
    @overload
    def erase(
        self, conn: SyncConn, entity_id: EntityId, *, by: str | None = None, reason: str | None = None
    ) -> Erased: ...
    def erase(
        self,
        conn: AsyncConn | SyncConn,
        entity_id: EntityId,
        *,
        by: str | None = None,
        reason: str | None = None,
    ) -> Erased | Awaitable[Erased]:
        """Erases the data of a workflow, and every text of it, in the caller's transaction. Await it on an async one.

        Only the owner of the schema may. A workflow that has not ended is cancelled first. What happened, when and by
        whom stays in the history, with a row that says who has erased the rest: `by` (default: the database role) and
        `reason`. Returns what went, and what can't be reached: messages that were published, parents and children.

        Raises InvalidInput before any SQL if a value can't be stored. The database raises NoWorkflow, and
        NotCancellable if the workflow has not ended and the deployed pipeline has no status for cancelled ones; like
        any error in a transaction, they end it.
        """
        erased: Erased | Awaitable[Erased] = erase(self.name, conn, entity_id, by, reason)
        return erased

    # Moving: see client/move.py.

    @overload
    def move(
        self, conn: AsyncConn, entity_id: str, status: str, *, by: str | None = None, reason: str | None = None
    ) -> Coroutine[Any, Any, str]: ...
    @overload
    def move(
        self, conn: SyncConn, entity_id: str, status: str, *, by: str | None = None, reason: str | None = None
    ) -> str: ...
    def move(
        self,
        conn: AsyncConn | SyncConn,
        entity_id: str,
        status: str,
        *,
        by: str | None = None,
        reason: str | None = None,
    ) -> str | Awaitable[str]:
        """Changes a workflow's status in the caller's transaction. Await it on an async connection.

        Returns the status that the workflow then has. Its job, its questions and its waits end, and the stage that
        takes the new status has its job. The history keeps `by` (default: the session's actor) and `reason`. A workflow
        that has the status already stays as it is.

        Raises InvalidInput before any SQL if a value can't be stored. The database raises NoWorkflow, UnknownStatus,
        IllegalChange if the pipeline doesn't allow the change, and QuorumNeeded if only votes lead there; like any
        error in a transaction, they end it.
        """
        moved: str | Awaitable[str] = move(self.name, conn, entity_id, status, by, reason)
        return moved

    # Waiting: see client/wait.py.

    @overload
    def wait(
        self, where: AsyncConn, entity_id: str, *statuses: str, timeout: float | timedelta, since: int = 0
    ) -> Coroutine[Any, Any, Workflow[Data]]: ...
    @overload
    def wait(
        self, where: str | SyncConn, entity_id: str, *statuses: str, timeout: float | timedelta, since: int = 0
    ) -> Workflow[Data]: ...
    def wait(
        self, where: str | AsyncConn | SyncConn, entity_id: str, *statuses: str, timeout: float | timedelta,
        since: int = 0,
    ) -> Workflow[Data] | Awaitable[Workflow[Data]]:  # fmt: skip
        """Waits until a workflow has come to one of the statuses, or without statuses until it has ended.

        Returns the workflow as it is then; it may have moved on already. `where` is a DSN, or a connection: await it on
        an async one, and `wait_async` with a DSN. `timeout` is in seconds or a timedelta. With `since`, a version of
        the workflow, only changes after it count.

        It polls, at first after 20 ms and then ever less often, up to each second. With a DSN it has a connection of
        its own, which a change to a status of `Pipeline(notify={…})` wakes at once.

        Raises WaitTimeout, which says where it stands and why, and NeverReached if it has ended in another status or
        its job is dead. Raises NotFound if there is no such workflow, and InvalidInput for a connection whose
        transaction has written, or sees no changes.
        """
        self._check_statuses(statuses)
        waited: Workflow[Data] | Awaitable[Workflow[Data]] = wait(
            self, where, entity_id, statuses, timeout, since, bool(self.notify)
        )
        return waited

    async def wait_async(
        self, dsn: str, entity_id: str, *statuses: str, timeout: float | timedelta, since: int = 0
    ) -> Workflow[Data]:
        """Does what `wait` does with a DSN, async."""
        self._check_statuses(statuses)
        return await wait_async(self, dsn, entity_id, statuses, timeout, since, bool(self.notify))

    def _check_statuses(self, wanted: tuple[str, ...]) -> None:
        """Raises InvalidInput for a status that this pipeline doesn't have: no workflow will ever come to it."""
        known = self.routes()
        for status in wanted:
            if status not in known:
                near = get_close_matches(str(status), known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise InvalidInput("statuses", f'pipeline "{self.name}" has no status {shown(status)}{hint}')

    # Looking: see client/lists.py.

    @overload
    def find(
        self, conn: AsyncConn, *, status: str | None = None, older: float | timedelta | None = None,
        assignee: str | None = None, entity: str | None = None, waits_for: str | None = None, dead: bool = False,
        error: str | None = None, limit: int = 100, after: str | None = None,
    ) -> Coroutine[Any, Any, Page[Data]]: ...  # fmt: skip
    @overload
    def find(
        self, conn: SyncConn, *, status: str | None = None, older: float | timedelta | None = None,
        assignee: str | None = None, entity: str | None = None, waits_for: str | None = None, dead: bool = False,
        error: str | None = None, limit: int = 100, after: str | None = None,
    ) -> Page[Data]: ...  # fmt: skip
    def find(
        self, conn: AsyncConn | SyncConn, *, status: str | None = None,
        older: float | timedelta | None = None, assignee: str | None = None, entity: str | None = None,
        waits_for: str | None = None, dead: bool = False, error: str | None = None, limit: int = 100,
        after: str | None = None,
    ) -> Page[Data] | Awaitable[Page[Data]]:  # fmt: skip
        """Lists workflows of this pipeline, a page of up to `limit` at a time. Await it on an async connection.

        Only those in `status`; that have been in their status for longer than `older` (seconds or a timedelta); that
        ask `assignee`; whose entity begins with `entity`; that wait for `waits_for`: approval, signal, "signal NAME",
        children, deadline, timer, worker or change; whose job is `dead`; or dead of `error`, an error or its kind.

        Workflows that have not ended come in the order in which they came to their status, dead ones the latest first,
        those of an entity prefix by entity, questions the oldest first, and all others the newest first. Pass the
        `after` of a page, with the same filters, to get the next one. See docs/lists.md.

        Raises InvalidInput, before any SQL, for a value that no list can have.
        """
        found: Page[Data] | Awaitable[Page[Data]] = lists.find(
            self, conn, status=status, older=older, assignee=assignee, entity=entity, waits_for=waits_for, dead=dead,
            error=error, limit=limit, after=after,
        )  # fmt: skip
        return found

    @overload
    def get(self, conn: AsyncConn, entity_id: EntityId) -> Coroutine[Any, Any, Workflow[Data] | None]: ...
    @overload
    def get(self, conn: SyncConn, entity_id: EntityId) -> Workflow[Data] | None: ...
    def get(
        self, conn: AsyncConn | SyncConn, entity_id: EntityId
    ) -> Workflow[Data] | Awaitable[Workflow[Data] | None] | None:
        """Returns the workflow of an entity, or None if there is none. Await it on an async connection."""
        found: Workflow[Data] | Awaitable[Workflow[Data] | None] | None = lists.get(self, conn, entity_id)
        return found

    @overload
    def history(
        self, conn: AsyncConn, entity_id: EntityId, *, limit: int = 1_000
    ) -> Coroutine[Any, Any, list[StateChange]]: ...
    @overload
    def history(self, conn: SyncConn, entity_id: EntityId, *, limit: int = 1_000) -> list[StateChange]: ...
    def history(
        self, conn: AsyncConn | SyncConn, entity_id: EntityId, *, limit: int = 1_000
    ) -> list[StateChange] | Awaitable[list[StateChange]]:
        """Returns the latest `limit` changes of an entity's workflow in their order. Await it on an async connection.

        The list is empty if there is no such workflow.
        """
        found: list[StateChange] | Awaitable[list[StateChange]] = lists.history(self, conn, entity_id, limit)
        return found
