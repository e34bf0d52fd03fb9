"""Runs Django's tasks by Outbox's workers: `TASKS = {"default": {"BACKEND": "outbox.django.tasks.OutboxBackend"}}`.

A task is a workflow, enqueued in the ORM's transaction, and each queue a pipeline of its own: `tasks` for the queue
`default`, `tasks:emails` for the queue `emails`. It runs once, as Django's tasks do: one whose process dies has failed.
With OPTIONS {"ATTEMPTS": 3} it is tried again.

The interface is that of Django 6, `django.tasks`, or of its backport for older ones, `django-tasks`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import traceback
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.core import checks
from django.core.exceptions import ValidationError
from django.db import connections, transaction
from django.utils import timezone
from django.utils.module_loading import import_string
from pydantic import BaseModel, Field

from ..checks import MAX_NAME
from ..client.submit import Submitted
from ..definition.outcome import Backoff, Go
from ..definition.pipeline import Pipeline
from ..definition.run import Run
from ..errors import DefinitionError
from ..texts import clean
from . import project
from .models import Workflow

_interface = "django.tasks" if importlib.util.find_spec("django.tasks") else "django_tasks"
_tasks, _base, _signals, _exceptions = (
    importlib.import_module(f"{_interface}{module}") for module in ("", ".base", ".signals", ".exceptions")
)
_Backend: Any = importlib.import_module(f"{_interface}.backends.base").BaseTaskBackend
Status = _base.TaskResultStatus
InvalidTask = _exceptions.InvalidTask if _interface == "django.tasks" else _exceptions.InvalidTaskError

QUEUE = "default"
"""The queue whose pipeline has the bare name."""

LONGEST = 86_400.0
"""Seconds that a task may take, unless OPTIONS has a TIMEOUT: Django's tasks have no limit."""


class Enqueued(BaseModel):
    """The data of a task's workflow: what is to be called, and how that has ended."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    priority: int = 0
    run_after: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker_ids: list[str] = Field(default_factory=list)
    return_value: Any = None
    error: str | None = None
    traceback: str | None = None


class OutboxBackend(_Backend):
    """Enqueues tasks as workflows, in the transaction of Django's connection to the database of OUTBOX.

    QUEUES must name the queues. OPTIONS may have ATTEMPTS (default: 1), TIMEOUT in seconds, and CONCURRENCY, how many
    tasks of a queue run at once in all workers.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._attempts = self.options.get("ATTEMPTS", 1)
        self.pipelines = {queue: self._pipeline(queue) for queue in sorted(self.queues)}

    def check(self, **_: Any) -> Iterable[checks.CheckMessage]:
        """Returns an error unless the queues are named: each is a pipeline, which must be deployed."""
        if not self.queues:
            yield checks.Error(
                f'TASKS["{self.alias}"]["QUEUES"] must name the queues: each is a pipeline.', id="outbox.E004"
            )

    def validate_task(self, task: Any) -> None:
        super().validate_task(task)
        if task.queue_name not in self.pipelines:
            raise InvalidTask(f'TASKS["{self.alias}"]["QUEUES"] has no {task.queue_name!r}.')

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Enqueues a task in the ORM's transaction, and returns its result, which has the workflow's id."""
        self.validate_task(task)
        path = f"{task.func.__module__}.{task.func.__qualname__}"
        result = self._result(task, "", args, kwargs, enqueued_at=timezone.now())
        data = Enqueued(
            task=path, args=result.args, kwargs=result.kwargs, priority=task.priority, run_after=task.run_after
        )
        deferred = task.run_after is not None and task.run_after > timezone.now()
        submitted = self._submit(self.pipelines[task.queue_name], data, deferred=deferred)
        object.__setattr__(result, "id", str(submitted))
        _signals.task_enqueued.send(type(self), task_result=result)
        return result

    def _submit(self, pipeline: Pipeline[Enqueued], data: Enqueued, *, deferred: bool) -> UUID:
        alias = project.load().database
        with transaction.atomic(using=alias, savepoint=False), connections[alias].cursor() as cursor:
            cursor.execute("SELECT outbox.uuid7()")
            ((id_,),) = cursor.fetchall()
            if not deferred:
                made: Submitted = pipeline.submit(connections[alias], str(id_), data)
                return made.id
            cursor.execute(
                "INSERT INTO outbox.workflow_states (id, pipeline, entity_id, current_status, metadata)"
                " VALUES (%s, %s, %s, 'DEFERRED', %s::text::jsonb)",
                (id_, pipeline.name, str(id_), pipeline.dump(data)),
            )
            return UUID(str(id_))

    def get_result(self, result_id: str) -> Any:
        """Returns the result of a task by its id. Raises TaskResultDoesNotExist if no queue of this backend has it."""
        names = {pipeline.name: queue for queue, pipeline in self.pipelines.items()}
        try:
            found = Workflow.objects.select_related("job", "dead_job").filter(pk=result_id, pipeline__in=names).get()
        except (Workflow.DoesNotExist, ValidationError):
            raise _exceptions.TaskResultDoesNotExist(result_id) from None
        return self._read(found, Enqueued.model_validate(found.metadata), names[found.pipeline])

    def _read(self, found: Any, data: Enqueued, queue: str) -> Any:
        job, dead = getattr(found, "job", None), getattr(found, "dead_job", None)
        changes = {"priority": data.priority, "queue_name": queue, "run_after": data.run_after, "backend": self.alias}
        task = import_string(data.task).using(**changes)
        result = self._result(task, str(found.pk), data.args, data.kwargs, enqueued_at=found.created_at)
        seen = {"started_at": data.started_at, "finished_at": data.finished_at, "worker_ids": data.worker_ids}
        if found.current_status in (Status.SUCCESSFUL, Status.FAILED):
            seen["status"] = Status(found.current_status)
            if data.error is not None:
                result.errors.append(_base.TaskError(exception_class_path=data.error, traceback=data.traceback or ""))
        elif dead is not None:
            seen |= {"status": Status.FAILED, "finished_at": dead.died_at, "worker_ids": ["?"] * dead.attempts}
            result.errors.append(_base.TaskError(exception_class_path="builtins.RuntimeError", traceback=dead.error))
        elif job is not None and job.stage == "run" and job.owner is not None:
            workers = [str(job.owner)] * job.attempt
            seen |= {"status": Status.RUNNING, "started_at": job.claimed_at, "worker_ids": workers}
        for name, value in {
            **seen,
            "last_attempted_at": seen["started_at"],
            "_return_value": data.return_value,
        }.items():
            object.__setattr__(result, name, value)
        return result

    def _result(self, task: Any, id_: str, args: Any, kwargs: Any, *, enqueued_at: datetime) -> Any:
        return _base.TaskResult(
            task=task, id=id_, status=Status.READY, enqueued_at=enqueued_at, started_at=None, finished_at=None,
            last_attempted_at=None, args=args, kwargs=kwargs, backend=self.alias, errors=[], worker_ids=[],
        )  # fmt: skip

    def _pipeline(self, queue: str) -> Pipeline[Enqueued]:
        """Returns the pipeline of a queue. A deferred task waits in a status of its own until its time comes."""
        parts = ["tasks" if self.alias == _tasks.DEFAULT_TASK_BACKEND_ALIAS else f"tasks-{self.alias}", queue]
        name = ":".join(parts if queue != QUEUE else parts[:1])
        if len(name) > MAX_NAME:
            raise DefinitionError(f'TASKS["{self.alias}"]["QUEUES"]: {queue} is too long a name for a queue')
        pipeline = Pipeline(name, data=Enqueued, initial="READY", final={"SUCCESSFUL", "FAILED"})
        pipeline.allow("READY", to="DEFERRED")

        @pipeline.stage("defer", on="DEFERRED", to="READY")
        def defer(run: Run[Enqueued]) -> Go[Enqueued]:
            return Go("READY", at=run.data.run_after)

        @pipeline.stage(
            "run", on="READY", to={"SUCCESSFUL", "FAILED"}, retry=Backoff(attempts=self._attempts), priority="priority",
            timeout=self.options.get("TIMEOUT", LONGEST), concurrency=self.options.get("CONCURRENCY"),
        )  # fmt: skip
        def run_task(run: Run[Enqueued]) -> Go[Enqueued]:
            return self._run(run, queue)

        return pipeline

    def _run(self, run: Run[Enqueued], queue: str) -> Go[Enqueued]:
        """Calls the task's function, and keeps what it returns or raises."""
        started = timezone.now()
        workers = [f"{socket.gethostname()}:{os.getpid()}"] * run.attempt
        ended: dict[str, Any] = {"started_at": started, "worker_ids": workers}
        result = None
        try:
            changes = {"priority": run.data.priority, "queue_name": queue, "backend": self.alias}
            task = import_string(run.data.task).using(**changes)
            result = self._result(task, str(run.workflow_id), run.data.args, run.data.kwargs, enqueued_at=started)
            _set(result, status=Status.RUNNING, started_at=started, last_attempted_at=started, worker_ids=workers)
            _signals.task_started.send(type(self), task_result=result)
            context = (_base.TaskContext(task_result=result),) if task.takes_context else ()
            returned = task.call(*context, *result.args, **result.kwargs)
            ended["return_value"] = _base.normalize_json(returned)
        except Exception as error:
            if run.attempt < self._attempts:
                raise
            ended["error"] = f"{type(error).__module__}.{type(error).__qualname__}"
            told = "".join(traceback.format_exception(error))
            ended["traceback"] = clean(told, len(told))
            return self._ended(run, result, ended)  # here, where who receives the signal finds the exception
        return self._ended(run, result, ended)

    def _ended(self, run: Run[Enqueued], result: Any, ended: dict[str, Any]) -> Go[Enqueued]:
        """Tells Django how a task has ended, and returns what the workflow is to keep of it."""
        status = "FAILED" if "error" in ended else "SUCCESSFUL"
        ended["finished_at"] = timezone.now()
        if result is not None:
            _set(result, status=Status(status), finished_at=ended["finished_at"])
            _set(result, _return_value=ended.get("return_value"))
            if "error" in ended:
                how = {"exception_class_path": ended["error"], "traceback": ended["traceback"]}
                result.errors.append(_base.TaskError(**how))
            _signals.task_finished.send(type(self), task_result=result)
        return Go(status, run.data.model_copy(update=ended))


def pipelines() -> list[Pipeline[Any]]:
    """Returns the pipelines of all queues of the backends in TASKS that are Outbox's."""
    ours = [backend for backend in _tasks.task_backends.all() if isinstance(backend, OutboxBackend)]
    return [pipeline for backend in ours for pipeline in backend.pipelines.values()]


def _set(result: Any, **values: Any) -> None:
    for name, value in values.items():  # a result is frozen for those who get it
        object.__setattr__(result, name, value)
