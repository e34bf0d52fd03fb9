"""Runs one handler without a database: what it gets and what it returns is checked by the engine's own code."""

from __future__ import annotations

import asyncio
import contextvars
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar, cast
from uuid import UUID

from .. import documents, texts
from ..checks import check_whole
from ..definition import hooks
from ..definition.data import VERSION
from ..definition.effect import Known
from ..definition.lifespan import Lifespans
from ..definition.pipeline import Pipeline
from ..definition.run import Message, Run
from ..definition.stage import Stage
from ..documents import EntityId
from ..engine.effects import together
from ..engine.handle import begin, finish
from ..engine.job import Failed, Finished, Job, PutBack
from ..errors import HandlerError, InvalidInput
from .connections import Connection, psycopg_of, require_color, savepoint, savepoint_async
from .memory import Memory
from .running import no_loop

Data = TypeVar("Data")

_IDS = UUID("0d6e9dd5-5b4f-5c0b-9a33-3d5fd5f7a1d4")
"""The namespace of the ids of workflows that aren't in a database: the same entity has the same id in every attempt."""


@dataclass(frozen=True, slots=True)
class Published:
    """A message. `payload` and `headers` are JSON values."""

    topic: str
    key: str | None
    payload: Any
    headers: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Spawned:
    """A child that an attempt starts. `pipeline` is its name, and `data` its data as a JSON value."""

    pipeline: str
    entity_id: str
    data: Any
    cancel: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt(Generic[Data]):
    """What one attempt has come to.

    `outcome` is what the handler returned. `status` is where the workflow goes, and `data` is what the next stage gets:
    the data as it is stored, and read again. `until` is when the workflow's wait, or the delay of its next stage, ends
    by itself. `kept` are the results of `run.once` by their keys: pass them as `kept=` to the next attempt. `effects`
    says of those of `run.effect` what is known of them: pass them as `effects=`. `progress` is the last text of
    `run.progress`.
    """

    outcome: Any
    status: str
    data: Data
    messages: list[Published]
    spawned: list[Spawned]
    kept: dict[str, Any]
    effects: dict[str, Known]
    progress: str | None
    until: datetime | None
    run: Run[Data] = field(repr=False, compare=False)


def attempt(
    pipeline: Pipeline[Data], stage: str, data: Data | Mapping[str, Any], *, attempt: int = 1,
    entity_id: EntityId = "entity", kept: Mapping[str, Any] | None = None, connection: Any = None,
    now: datetime | None = None, resources: Any = None, status: str | None = None,
    effects: Mapping[str, Known] | None = None,
) -> Attempt[Data]:  # fmt: skip
    """Calls the handler of a stage once, with this data, and returns what the attempt has come to.

    A plain function is called in the calling thread, an async one in an event loop of its own. A stage with
    transaction=True needs a `connection` with an open transaction: of psycopg, async if the handler is, or Django's.
    What the handler writes stays in that transaction, and is rolled back if the handler raises.

    What the handler raises is raised, `Retry` and `Reject` included. Raises HandlerError if the engine would not take
    what the handler returns, and InvalidInput if the pipeline would not take the data, or the connection doesn't fit.

    `kept` are results that `run.once` has kept in earlier attempts, and `effects` is what is known of their effects:
    Done(result), NotDone(), or Ask() for one that is unknown. `until` counts from `now`. `resources` are given
    in place of what the pipeline's lifespan would make. `status` says where a stage that takes several statuses finds
    the workflow. No timeout ends the handler, and nothing is called after the commit, because there is none.
    """
    alone = _Alone(attempt, [entity_id], kept, connection, now, resources, status, effects)
    (made,) = _run(_Handler(pipeline, _stage(pipeline, stage, batch=False), [data], alone), "attempt_async")
    return made


async def attempt_async(
    pipeline: Pipeline[Data], stage: str, data: Data | Mapping[str, Any], *, attempt: int = 1,
    entity_id: EntityId = "entity", kept: Mapping[str, Any] | None = None, connection: Any = None,
    now: datetime | None = None, resources: Any = None, status: str | None = None,
    effects: Mapping[str, Known] | None = None,
) -> Attempt[Data]:  # fmt: skip
    """Does what `attempt` does, in a running event loop. A plain function is called in a thread."""
    alone = _Alone(attempt, [entity_id], kept, connection, now, resources, status, effects)
    (made,) = await _run_async(_Handler(pipeline, _stage(pipeline, stage, batch=False), [data], alone))
    return made


def attempt_batch(
    pipeline: Pipeline[Data], stage: str, data: Sequence[Data | Mapping[str, Any]], *, attempt: int = 1,
    entity_ids: Sequence[EntityId] | None = None, kept: Mapping[str, Any] | None = None, connection: Any = None,
    now: datetime | None = None, resources: Any = None, status: str | None = None,
    effects: Mapping[str, Known] | None = None,
) -> list[Attempt[Data]]:  # fmt: skip
    """Does what `attempt` does for a stage with `batch`: calls its handler once, with a run for each of `data`."""
    alone = _Alone(attempt, entity_ids, kept, connection, now, resources, status, effects)
    return _run(_Handler(pipeline, _stage(pipeline, stage, batch=True), data, alone), "attempt_batch_async")


async def attempt_batch_async(
    pipeline: Pipeline[Data], stage: str, data: Sequence[Data | Mapping[str, Any]], *, attempt: int = 1,
    entity_ids: Sequence[EntityId] | None = None, kept: Mapping[str, Any] | None = None, connection: Any = None,
    now: datetime | None = None, resources: Any = None, status: str | None = None,
    effects: Mapping[str, Known] | None = None,
) -> list[Attempt[Data]]:  # fmt: skip
    """Does what `attempt_batch` does, in a running event loop."""
    alone = _Alone(attempt, entity_ids, kept, connection, now, resources, status, effects)
    return await _run_async(_Handler(pipeline, _stage(pipeline, stage, batch=True), data, alone))


class _Alone(NamedTuple):
    """What stands for the database in one call."""

    attempt: int
    entity_ids: Sequence[EntityId] | None
    kept: Mapping[str, Any] | None
    connection: Any
    now: datetime | None
    resources: Any
    status: str | None
    effects: Mapping[str, Known] | None


class _Handler(Generic[Data]):
    """One call of a stage's handler."""

    def __init__(
        self, pipeline: Pipeline[Data], stage: Stage, data: Sequence[Data | Mapping[str, Any]], alone: _Alone
    ) -> None:
        most = stage.batch or 1
        if not isinstance(data, Sequence) or not 1 <= len(data) <= most:
            raise InvalidInput("data", f"stage {stage.queue} takes a list of 1 to {most}")
        ids = [f"entity-{n}" for n in range(1, len(data) + 1)] if alone.entity_ids is None else list(alone.entity_ids)
        if len(ids) != len(data):
            raise InvalidInput("entity_ids", f"must be {len(data)}, as many as data")
        check_whole(alone.attempt, "attempt=", stage.retry.attempts)
        self.stage = stage
        self._conn = _connection(stage, alone.connection)
        self._now = alone.now or datetime.now(UTC)
        self._memory = Memory(alone.kept, alone.effects)
        self._status = _status(stage, alone.status)
        self._runs = [self._begin(pipeline, each, id_, alone.attempt) for each, id_ in zip(data, ids, strict=True)]
        if alone.resources is not None:
            hooks.give(self._runs, alone.resources)
        self._handler = called_as_in_a_worker(
            stage.handler, stage.hooks, stage.is_async, f"the handler of {stage.queue}"
        )

    def run(self) -> list[Attempt[Data]]:
        """Calls a plain handler."""
        with savepoint(self._conn):
            return self._finished(self._handler(self._argument()))

    async def run_async(self) -> list[Attempt[Data]]:
        """Calls an async handler."""
        async with savepoint_async(self._conn):
            return self._finished(await self._handler(self._argument()))

    def _begin(self, pipeline: Pipeline[Data], data: Any, entity: EntityId, attempt: int) -> Run[Data]:
        entity_id = documents.entity(entity)
        stage, workflow_id = self.stage, uuid.uuid5(_IDS, f"{pipeline.name}/{entity_id}")
        job = Job(
            stage, owner=1, id=1, workflow_id=str(workflow_id), entered=1, attempt=attempt, careful=False,
            entity_id=entity_id, status=self._status, version=1, metadata=pipeline.dump_readable(data),
            checkpoints=self._memory,
        )  # fmt: skip
        run = begin(job, self._conn)
        if isinstance(run, Run):
            job.begin()
            return run
        if isinstance(run, PutBack):
            raise HandlerError(run.trouble.reason)
        raise run.raised or HandlerError(run.error)

    def _argument(self) -> Any:
        if self.stage.batch is None:
            return self._runs[0]
        together(self._runs)
        return list(self._runs)

    def _finished(self, returned: Any) -> list[Attempt[Data]]:
        each = [returned] * len(self._runs) if self.stage.batch is None or returned is None else list(returned)
        outcomes = finish(self._runs, returned)
        for run in self._runs:
            if run._transaction is not None:
                run._transaction.end()
                run._transaction.require()
        for outcome in outcomes:
            if isinstance(outcome, PutBack):  # it has caught EffectUnknown
                raise HandlerError(outcome.trouble.reason)
            if isinstance(outcome, Failed):
                raise outcome.raised or HandlerError(outcome.error)
        return [
            self._attempt(run, one, outcome)
            for run, one, outcome in zip(self._runs, each, outcomes, strict=True)
            if isinstance(outcome, Finished)
        ]

    def _attempt(self, run: Run[Data], returned: Any, outcome: Finished) -> Attempt[Data]:
        stored = cast(Job, run._job).metadata if outcome.data is None else outcome.data
        return Attempt(
            outcome=returned,
            status=outcome.status,
            data=self.stage.data.load(stored),
            messages=[_published(message) for message in outcome.messages],
            spawned=[_spawned(child) for child in (outcome.wait or {}).get("spawn", ())],
            kept=self._memory.kept,
            effects=dict(self._memory.effects),
            progress=self._memory.progress,
            until=_until(outcome, self._now),
            run=run,
        )


def _run(call: _Handler[Data], instead: str) -> list[Attempt[Data]]:
    if call.stage.is_async:
        no_loop(instead)
        return asyncio.run(call.run_async())
    return contextvars.copy_context().run(call.run)


async def _run_async(call: _Handler[Data]) -> list[Attempt[Data]]:
    if call.stage.is_async:
        return await asyncio.create_task(call.run_async())
    return await asyncio.to_thread(call.run)


def _stage(pipeline: Pipeline[Any], name: str, *, batch: bool) -> Stage:
    if not isinstance(pipeline, Pipeline):
        raise InvalidInput("pipeline", f"{texts.shown(pipeline)} is not a Pipeline")
    if name not in pipeline.stages:
        known = ", ".join(pipeline.stages) or "none"
        raise InvalidInput("stage", f"pipeline {pipeline.name} has no stage {texts.shown(name)}; it has: {known}")
    stage = pipeline.stages[name]
    if batch != (stage.batch is not None):
        raise InvalidInput(
            "stage", f"{stage.queue} has {'no ' if batch else ''}batch=: call attempt{'' if batch else '_batch'}"
        )
    return stage


def _status(stage: Stage, given: str | None) -> str:
    """Returns the status in which the handler finds the workflow."""
    if given is None and (stage.running is not None or len(stage.on) == 1):
        return stage.running or min(stage.on)
    taken = stage.on if stage.running is None else {stage.running}
    if given is None or given not in taken:
        raise InvalidInput("status", f"must be one that stage {stage.queue} takes: {', '.join(sorted(taken))}")
    return given


def _connection(stage: Stage, conn: Any) -> Connection | None:
    """Returns the psycopg connection for a stage's handler. None if it has none."""
    if not stage.transaction:
        if conn is not None:
            raise InvalidInput("connection", f"is for stages with transaction=True, and {stage.queue} has none")
        return None
    if conn is None:
        kind = "an async psycopg connection" if stage.is_async else "a psycopg connection, or Django's"
        raise InvalidInput("connection", f"stage {stage.queue} has transaction=True: pass {kind}")
    found = psycopg_of(conn)
    require_color(found, f"stage {stage.queue}", is_async=stage.is_async)
    return found


def called_as_in_a_worker(function: Any, given: hooks.Hooks, is_async: bool, name: str) -> Any:
    """Returns a function with what runs around it. Nothing is opened: a test gives the resources."""
    return hooks.surround(
        function, is_async=is_async, hooks=replace(given, lifespan=None), lifespans=Lifespans(), name=name
    )


def _published(message: Message) -> Published:
    headers = None if message.headers is None else json.loads(message.headers)
    return Published(message.topic, message.key, json.loads(message.payload), headers)


def _spawned(child: Mapping[str, Any]) -> Spawned:
    data = json.loads(child["data"])
    if isinstance(data, dict):
        data.pop(VERSION, None)
    return Spawned(child["pipeline"], child["entity"], data, child["cancel"])


def _until(outcome: Finished, now: datetime) -> datetime | None:
    wait = outcome.wait or {}
    if wait.get("at"):
        return datetime.fromisoformat(wait["at"])
    seconds = wait.get("after") if wait.get("after") is not None else wait.get("within")
    return None if seconds is None else now + timedelta(seconds=seconds)
