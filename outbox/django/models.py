"""Defines models to read what is in the schema `outbox`: workflows, their history, jobs and questions.

They are unmanaged, so no migration makes or changes their tables. Workflows are changed by `Pipeline.submit`, `decide`
and the like, which `by=` gives a name, or by an UPDATE of their status; not by `save()`, which would write all columns
as they were when the row was read.
"""

from __future__ import annotations

from typing import Any, NoReturn

from django.db import DEFAULT_DB_ALIAS, models, router

from . import project


class Rows(models.QuerySet):
    """Rows that are read. An UPDATE of statuses is left: it goes through the triggers."""

    def delete(self) -> NoReturn:
        _refuse(self.model)

    def bulk_create(self, *_: Any, **__: Any) -> NoReturn:
        _refuse(self.model)

    def bulk_update(self, *_: Any, **__: Any) -> NoReturn:
        _refuse(self.model)


class Reader(models.Manager.from_queryset(Rows)):  # type: ignore[misc]
    """Reads from the database of OUTBOX, unless a router of the project names another one, such as a replica."""

    def get_queryset(self) -> Any:
        found = super().get_queryset()
        if self._db is None and router.db_for_read(self.model) == DEFAULT_DB_ALIAS:
            return found.using(project.load().database)
        return found


class ReadOnly(models.Model):
    """A row of a table in the schema `outbox`."""

    objects = Reader()

    class Meta:
        abstract = True
        managed = False
        default_permissions = ("view",)

    def save(self, *_: Any, **__: Any) -> NoReturn:
        _refuse(type(self))

    def delete(self, *_: Any, **__: Any) -> NoReturn:
        _refuse(type(self))


def _refuse(model: Any) -> NoReturn:
    told = "use Pipeline.submit, outbox.decide, outbox.signal or Pipeline.cancel"
    raise TypeError(f"{model.__name__} is for reading: {told}")


class Workflow(ReadOnly):
    """An entity on its way through a pipeline."""

    id = models.UUIDField(primary_key=True)
    pipeline = models.TextField()
    entity_id = models.TextField("entity")
    current_status = models.TextField("status")
    metadata = models.JSONField("data")
    version = models.BigIntegerField()
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = '"outbox"."workflow_states"'

    def __str__(self) -> str:
        return f"{self.pipeline} {self.entity_id}"


class StateChange(ReadOnly):
    """A change of a workflow's status: who made it, when, and why."""

    id = models.BigIntegerField(primary_key=True)
    workflow = models.ForeignKey(Workflow, models.DO_NOTHING, related_name="changes", db_constraint=False)
    from_status = models.TextField("from", null=True)
    to_status = models.TextField("to")
    version = models.BigIntegerField()
    actor = models.TextField("by")
    login = models.TextField(null=True)
    reason = models.TextField(null=True)
    stage = models.TextField(null=True)
    attempt = models.IntegerField(null=True)
    at = models.DateTimeField()

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = '"outbox"."state_changes"'
        ordering = ("version",)

    def __str__(self) -> str:
        return f"{self.from_status or 'start'} \N{RIGHTWARDS ARROW} {self.to_status}"


class Job(ReadOnly):
    """The job of a workflow: which stage runs for it, and when. `stage` is None if it is nothing but a deadline."""

    workflow = models.OneToOneField(
        Workflow, models.DO_NOTHING, primary_key=True, related_name="job", db_constraint=False
    )
    pipeline = models.TextField()
    stage = models.TextField(null=True)
    status = models.TextField()
    run_at = models.DateTimeField()
    claimed_at = models.DateTimeField(null=True)
    owner = models.IntegerField("worker", null=True)
    attempt = models.IntegerField()
    error = models.TextField(null=True)
    deadline = models.DateTimeField(null=True)
    on_deadline = models.TextField(null=True)
    progress = models.TextField(null=True)

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = '"outbox"."jobs"'

    def __str__(self) -> str:
        return f"{self.pipeline}.{self.stage}" if self.stage else f"deadline of {self.pipeline}"


class DeadJob(ReadOnly):
    """A job that has used up its attempts, or was rejected. It waits for a person."""

    workflow = models.OneToOneField(
        Workflow, models.DO_NOTHING, primary_key=True, related_name="dead_job", db_constraint=False
    )
    pipeline = models.TextField()
    entity_id = models.TextField("entity")
    stage = models.TextField()
    status = models.TextField()
    attempts = models.IntegerField()
    error = models.TextField()
    kind = models.TextField()
    died_at = models.DateTimeField()

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = '"outbox"."dead_jobs"'
        permissions = (("retry_deadjob", "Can have dead jobs run again"),)

    def __str__(self) -> str:
        return f"{self.pipeline}.{self.stage} {self.entity_id}"


class Approval(ReadOnly):
    """A question to a person, with its answer. It is open until `ended_at`."""

    id = models.UUIDField(primary_key=True)
    workflow = models.ForeignKey(Workflow, models.DO_NOTHING, related_name="approvals", db_constraint=False)
    pipeline = models.TextField()
    entity_id = models.TextField("entity")
    status = models.TextField()
    name = models.TextField(null=True)
    question = models.TextField()
    data = models.JSONField("own data", null=True)
    options = models.JSONField()
    assignee = models.TextField(null=True)
    asked_at = models.DateTimeField()
    deadline = models.DateTimeField(null=True)
    votes = models.IntegerField()
    ended = models.TextField("how it ended", null=True)
    decision = models.TextField(null=True)
    to_status = models.TextField("led to", null=True)
    decided_by = models.TextField(null=True)
    reason = models.TextField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = '"outbox"."approvals"'
        permissions = (("decide_approval", "Can answer questions"),)

    def __str__(self) -> str:
        return str(self.question)
