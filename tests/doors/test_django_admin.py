"""The models read the schema `outbox`; in the admin, people answer questions and have dead jobs run again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.core.management import call_command
from django.test import Client, override_settings
from pytest_postgresql.executors import NoopExecutor

from kit import django_project
from kit.databases import clone
from kit.pipelines import drain
from outbox import Pipeline, Reject, Run, WaitForApproval, deploy
from outbox.django.models import Approval, DeadJob, Job, StateChange, Workflow

Conn = psycopg.Connection[Any]

posts = Pipeline("posts", initial="NEW", final={"DONE", "REFUSED"})
posts.allow("ASKED", to={"DONE", "REFUSED"})


@posts.stage("ask", on="NEW", to="ASKED")
def ask(run: Run[dict[str, Any]]) -> WaitForApproval:
    if run.entity_id.startswith("dead"):
        raise Reject(f"<b>{run.entity_id}</b>")
    return WaitForApproval("Publish it?", status="ASKED", options={"approve": "DONE", "reject": "REFUSED"})


@pytest.fixture(scope="module")
def migrated(template: NoopExecutor) -> Iterator[str]:
    """A database with the tables of Django's own apps, and users who may look, decide and retry."""
    with clone(template) as dsn, django_project.shop(dsn):
        call_command("migrate", verbosity=0)
        for name in ("viewer", "sarah"):
            user = User.objects.create_user(name, password="p", is_staff=True)
            names = ["view_workflow", "view_approval", "view_deadjob"]
            names += ["decide_approval", "retry_deadjob"] if name == "sarah" else []
            user.user_permissions.set(Permission.objects.filter(codename__in=names))
        yield dsn


@pytest.fixture
def site(migrated: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Four workflows: two that ask, one that is dead, and one that is new. Their entities end in the test's name."""
    with django_project.database(migrated), psycopg.connect(migrated, autocommit=True) as conn:
        end = re.sub(r"\W", "-", request.node.name)
        deploy(conn, posts)
        posts.submit_many(conn, [(f"{kind}-{end}", {"text": "<i>hello</i>"}) for kind in ("first", "second", "dead")])
        drain(posts, migrated)
        posts.submit(conn, f"new-{end}", {})
        yield end
        drain(posts, migrated)


def browser(name: str = "sarah") -> Client:
    client = Client()
    client.force_login(User.objects.get(username=name))
    return client


def page(path: str, name: str = "sarah", **query: str) -> str:
    response = browser(name).get(f"/admin/outbox/{path}", query)
    assert response.status_code == 200, response
    return response.content.decode()


def act(path: str, action: str, *ids: Any, by: str = "sarah", **more: str) -> list[str]:
    """Chooses an action for some rows, and returns what the next page says, each with its level."""
    data = {"action": action, "_selected_action": [str(id_) for id_ in ids], "index": "0", **more}
    request = browser(by).post(f"/admin/outbox/{path}", data).wsgi_request
    return [f"{message.level_tag}: {message}" for message in get_messages(request)]


def test_models_read_workflows_and_lead_to_what_belongs_to_them(site: str) -> None:
    first = Workflow.objects.get(pipeline="posts", entity_id=f"first-{site}")
    assert (first.current_status, first.metadata) == ("ASKED", {"text": "<i>hello</i>"})
    assert [str(change) for change in first.changes.all()] == ["start → NEW", "NEW → ASKED"]
    (asked,) = first.approvals.filter(ended_at=None)
    assert (asked.question, asked.workflow) == ("Publish it?", first)
    assert Workflow.objects.get(entity_id=f"new-{site}").job.stage == "ask"
    dead = Workflow.objects.filter(dead_job__isnull=False, entity_id__endswith=site).get()
    assert dead.dead_job.error.endswith(f"<b>dead-{site}</b>")
    assert Job.objects.filter(workflow=dead).count() == 0
    assert StateChange.objects.filter(workflow__entity_id=f"first-{site}", stage="ask").count() == 1


def test_every_column_that_a_model_names_is_there(site: str) -> None:
    for model in (Workflow, StateChange, Job, DeadJob, Approval):
        list(model.objects.all()[:2])


def test_models_are_not_saved_or_deleted(site: str) -> None:
    first = Workflow.objects.get(entity_id=f"first-{site}")
    first.current_status = "DONE"
    for call in (
        first.save, first.delete, Workflow(pipeline="posts").save, Workflow.objects.all().delete,
        lambda: Workflow.objects.bulk_create([first]), lambda: Workflow.objects.bulk_update([first], ["current_status"]),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="Workflow is for reading: use Pipeline"):
            call()
    with pytest.raises(TypeError, match="StateChange is for reading"):
        first.changes.all().delete()
    with pytest.raises(TypeError, match="Job is for reading"):
        Job.objects.filter(workflow=first).delete()


def test_models_read_the_database_of_outbox_unless_a_router_says_otherwise(site: str, migrated: str) -> None:
    class Replica:
        def db_for_read(self, model: Any, **_: Any) -> str | None:
            return "replica" if model._meta.app_label == "outbox" else None

    with override_settings(OUTBOX={"DATABASE": "other"}), django_project.database(migrated, "other"):
        assert Workflow.objects.all().db == "other"
        first = Workflow.objects.get(entity_id=f"first-{site}")
        assert [change.workflow._state.db for change in first.changes.all()] == ["other", "other"]
        with override_settings(DATABASE_ROUTERS=[Replica()]):
            assert Workflow.objects.all().db == "replica"
        assert Workflow.objects.using("default").db == "default"


def test_pages_show_workflows_to_those_who_may_look(site: str) -> None:
    listed = page("workflow/", "viewer", q=f"first-{site}")
    assert (f"first-{site}" in listed, f"second-{site}" in listed) == (True, False)
    assert "posts" in page("workflow/", "viewer", pipeline="posts")
    found = Workflow.objects.get(entity_id=f"first-{site}")
    shown = page(f"workflow/{found.pk}/change/", "viewer")
    assert "Publish it?" in shown  # why it does not move
    assert "&lt;i&gt;hello&lt;/i&gt;" in shown
    assert "ASKED" in shown
    assert 'name="_save"' not in shown
    assert browser("viewer").get("/admin/outbox/workflow/add/").status_code == 403
    assert browser("viewer").post(f"/admin/outbox/workflow/{found.pk}/delete/", {"post": "yes"}).status_code == 403
    assert browser("viewer").get("/admin/outbox/job/").status_code == 404
    User.objects.create_user(f"nobody-{site}"[:150], is_staff=True)
    assert browser(f"nobody-{site}"[:150]).get("/admin/outbox/workflow/").status_code == 403


def test_questions_are_answered_by_the_user_of_the_request(site: str) -> None:
    first, second = (Approval.objects.get(entity_id=f"{name}-{site}") for name in ("first", "second"))
    assert act("approval/", "approve", first.pk, reason="fits") == [f"success: posts first-{site}: approve"]
    assert act("approval/", "reject", second.pk) == [f"success: posts second-{site}: reject"]
    answered = Approval.objects.get(pk=first.pk)
    assert (answered.decision, answered.decided_by, answered.reason) == ("approve", "sarah", "fits")
    assert [change.actor for change in Workflow.objects.get(entity_id=f"second-{site}").changes.all()][-1] == "sarah"
    assert first.entity_id not in page("approval/")
    assert first.entity_id in page("approval/", state="all")


def test_each_row_has_a_result_of_its_own(site: str) -> None:
    first, second = (Approval.objects.get(entity_id=f"{name}-{site}") for name in ("first", "second"))
    act("approval/", "reject", first.pk)
    told = {text.split()[2]: text for text in act("approval/?state=all", "approve", first.pk, second.pk)}
    assert told[f"second-{site}:"] == f"success: posts second-{site}: approve"
    refused = told[f"first-{site}:"]
    assert (refused.startswith("error: "), "sarah" in refused, "CONTEXT" in refused) == (True, True, False)


def test_who_may_not_decide_has_no_action_and_none_is_carried_out(site: str) -> None:
    first = Approval.objects.get(entity_id=f"first-{site}")
    assert 'value="approve"' in page("approval/")
    assert 'value="approve"' not in page("approval/", "viewer")
    act("approval/", "approve", first.pk, by="viewer")
    dead = DeadJob.objects.get(entity_id=f"dead-{site}")
    act("deadjob/", "retry", dead.pk, by="viewer")
    assert (Approval.objects.get(pk=first.pk).decision, DeadJob.objects.filter(pk=dead.pk).count()) == (None, 1)


def test_a_dead_job_runs_again(site: str) -> None:
    dead = DeadJob.objects.get(entity_id=f"dead-{site}")
    assert "&lt;b&gt;dead" in page(f"deadjob/{dead.pk}/change/")
    assert act("deadjob/", "retry", dead.pk) == [f"success: posts dead-{site}: runs again"]
    assert Job.objects.get(pk=dead.pk).stage == "ask"


def test_lists_count_no_more_rows_than_a_person_looks_through(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from outbox.django import admin

    monkeypatch.setattr(admin, "MOST_COUNTED", 2)
    assert admin.BoundedPaginator(Workflow.objects.order_by("-id"), 50).count == 2
