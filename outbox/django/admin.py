"""Shows workflows in Django's admin, where people answer questions and have dead jobs run again.

All else is read-only. Tables may have millions of rows, so lists are ordered and filtered by what has an index, and
counts stop at `MOST_COUNTED`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.core.paginator import Paginator
from django.db import Error, connections, transaction
from django.utils.functional import cached_property
from django.utils.html import format_html

from ..client.approvals import decide
from ..client.dead import retry
from ..client.why import why
from ..errors import OutboxError, Refused
from . import models, project

MOST_COUNTED = 10_000
"""Rows that a list counts at most: its last page may not be the last one."""


class BoundedPaginator(Paginator):
    """Counts no more rows than a person would look through."""

    @cached_property
    def count(self) -> int:
        return int(self.object_list.order_by()[:MOST_COUNTED].count())


class PipelineFilter(admin.SimpleListFilter):
    """Filters by pipeline. The names are those that are deployed: no list of a big table is read for them."""

    title = "pipeline"
    parameter_name = "pipeline"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        with connections[model_admin.model.objects.db].cursor() as cursor:
            cursor.execute("SELECT pipeline FROM outbox.pipelines ORDER BY pipeline")
            return [(name, name) for (name,) in cursor.fetchall()]

    def queryset(self, request: Any, queryset: Any) -> Any:
        return queryset.filter(pipeline=self.value()) if self.value() else queryset


class OpenFilter(admin.SimpleListFilter):
    """Shows open questions, unless all are asked for."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [("all", "All")]

    def choices(self, changelist: Any) -> Any:
        for value, title in ((None, "Open"), ("all", "All")):
            yield {
                "selected": self.value() == value,
                "query_string": changelist.get_query_string(
                    {} if value is None else {self.parameter_name: value}, [self.parameter_name]
                ),
                "display": title,
            }

    def queryset(self, request: Any, queryset: Any) -> Any:
        return queryset if self.value() == "all" else queryset.filter(ended_at=None)


class ReadOnly:
    """Shows rows to those who may view the model. Nothing can be added, changed or deleted."""

    def has_add_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        return False


class ReadOnlyAdmin(ReadOnly, admin.ModelAdmin):
    """A list and a page of details."""

    paginator = BoundedPaginator
    show_full_result_count = False
    list_per_page = 50
    search_fields: tuple[str, ...] = ("entity_id__startswith",)
    search_help_text = "The beginning of an entity"

    def each(self, request: Any, rows: Any, done: str, do: Callable[[Any, Any], str | None]) -> None:
        """Does something with each row, in a transaction of its own, and tells the user the result of each.

        `do` gets the connection and the row, and returns what is wrong, or None.
        """
        alias = project.load().database
        for row in rows.using(alias):
            what = f"{row.pipeline} {row.entity_id}"
            try:
                with transaction.atomic(using=alias):
                    problem = do(connections[alias], row)
            except (OutboxError, Error) as error:
                problem = _told(error)
            if problem is None:
                self.message_user(request, f"{what}: {done}", messages.SUCCESS)
            else:
                self.message_user(request, f"{what}: {problem}", messages.ERROR)


class ReasonForm(ActionForm):
    """Asks for a reason beside the action. It is kept in the history."""

    reason = forms.CharField(required=False, max_length=1000, label="Reason:")


class Changes(ReadOnly, admin.TabularInline):
    """The history of a workflow, on its page."""

    model = models.StateChange
    fields = readonly_fields = ("at", "from_status", "to_status", "actor", "reason", "stage", "attempt")
    extra = 0
    ordering = ("version",)


@admin.register(models.Workflow)
class WorkflowAdmin(ReadOnlyAdmin):
    """Workflows, the newest first, each with its data, its history, and why it does not move."""

    list_display = ("entity_id", "pipeline", "current_status", "created_at", "updated_at")
    list_filter = (PipelineFilter,)
    ordering = ("-id",)
    fields = ("pipeline", "entity_id", "current_status", "why", "data", "version", "created_at", "updated_at")
    readonly_fields = ("why", "data")
    inlines = (Changes,)

    @admin.display(description="Why it does not move")
    def why(self, workflow: models.Workflow) -> str:
        return str(why(connections[workflow._state.db], workflow.pipeline, workflow.entity_id))

    @admin.display(description="Data")
    def data(self, workflow: models.Workflow) -> str:
        return str(format_html("<pre>{}</pre>", json.dumps(workflow.metadata, indent=2, ensure_ascii=False)))


@admin.register(models.Approval)
class ApprovalAdmin(ReadOnlyAdmin):
    """Questions. Those who have the permission `decide_approval` answer them in their own name."""

    list_display = ("question", "entity_id", "pipeline", "assignee", "asked_at", "deadline", "decision", "decided_by")
    list_filter = (OpenFilter, PipelineFilter)
    ordering = ("id",)
    action_form = ReasonForm
    actions = ("approve", "reject")

    def has_decide_permission(self, request: Any) -> bool:
        return bool(request.user.has_perm("outbox.decide_approval"))

    @admin.action(description="Approve", permissions=("decide",))
    def approve(self, request: Any, questions: Any) -> None:
        self._answer(request, questions, "approve")

    @admin.action(description="Reject", permissions=("decide",))
    def reject(self, request: Any, questions: Any) -> None:
        self._answer(request, questions, "reject")

    def _answer(self, request: Any, questions: Any, decision: str) -> None:
        groups = list(request.user.groups.values_list("name", flat=True))
        reason = request.POST.get("reason") or None

        def answer(connection: Any, asked: models.Approval) -> None:
            decide(
                connection, asked.pipeline, asked.entity_id, decision, by=request.user.get_username(), reason=reason,
                question=asked.id, groups=groups,
            )  # fmt: skip

        self.each(request, questions, decision, answer)


@admin.register(models.DeadJob)
class DeadJobAdmin(ReadOnlyAdmin):
    """Dead jobs, the latest first. Those who have the permission `retry_deadjob` have them run again."""

    list_display = ("entity_id", "pipeline", "stage", "attempts", "kind", "died_at")
    list_filter = (PipelineFilter,)
    ordering = ("-died_at",)
    actions = ("retry",)

    def has_retry_permission(self, request: Any) -> bool:
        return bool(request.user.has_perm("outbox.retry_deadjob"))

    @admin.action(description="Run again", permissions=("retry",))
    def retry(self, request: Any, jobs: Any) -> None:
        def again(connection: Any, job: models.DeadJob) -> str | None:
            made = retry(connection, job.pipeline, job.entity_id, by=request.user.get_username())
            return None if made else "it has a job already, or no stage takes its status"

        self.each(request, jobs, "runs again", again)


def _told(error: Exception) -> str:
    """Returns an error in one line, without what Postgres adds about its functions."""
    if isinstance(error, Refused) and error.diag.message_primary:
        return error.diag.message_primary
    return str(error).partition("\nCONTEXT:")[0].strip()
