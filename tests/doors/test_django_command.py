"""`manage.py outbox …`: the whole command line on the project's database and pipelines."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import psycopg
import pytest
from django.core.management import ManagementUtility, call_command
from django.core.management.base import CommandError
from django.test import override_settings
from psycopg.conninfo import conninfo_to_dict

from apps.django_shop.pipelines import orders
from kit import django_project
from kit.servers import Process, wait_for
from outbox.django import dsn as dsn_of
from outbox.django.management.commands.outbox import APP
from outbox.django.management.commands.outbox import _settings as settings_of_project


@pytest.fixture
def project(dsn: str) -> Iterator[str]:
    """The tests' project on a database with the schema, and its pipelines."""
    with django_project.database(dsn):
        run("deploy")
        yield dsn


def run(*arguments: str) -> tuple[int, str, str]:
    """Runs `manage.py outbox …` in this process; returns its exit code and what it has printed."""
    out, err = io.StringIO(), io.StringIO()
    before = dict(os.environ)  # --settings stays in it
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            ManagementUtility(["/shop/manage.py", "outbox", *arguments]).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert isinstance(end.value.code, int)
    return end.value.code, out.getvalue(), err.getvalue()


def test_commands_work_on_the_projects_database_and_pipelines(project: str) -> None:
    code, out, _ = run("deploy", "--check")
    assert (code, out.splitlines()[0]) == (0, "orders: nothing to change")
    with psycopg.connect(project) as conn:
        orders.submit(conn, "o-1", {})
    code, out, _ = run("show", "o-1", "--json")
    assert (code, json.loads(out)["current_status"]) == (0, "NEW")


def test_what_outbox_dev_starts_finds_the_projects_pipelines_without_manage_py(spawn: Callable[..., Process]) -> None:
    settings = {"DJANGO_SETTINGS_MODULE": "apps.django_shop.settings"}
    process = spawn("deploy", "--app", APP, env=settings)
    assert process.wait() == 0, process.text()
    assert process.popen.stdout is not None
    assert process.popen.stdout.readline().startswith(b"orders: initial status")


def test_neither_the_environment_nor_pyproject_leads_elsewhere(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_DSN", "postgresql://127.0.0.1:1/elsewhere")
    monkeypatch.setenv("OUTBOX_APP", "elsewhere:pipelines")
    assert run("deploy", "--check")[0] == 0


def test_a_dsn_and_an_app_that_are_given_come_first(project: str) -> None:
    code, _, err = run("--dsn", "postgresql://127.0.0.1:1/elsewhere", "status")
    assert (code, "127.0.0.1" in err) == (1, True)
    assert run("deploy", "--app", "apps.cli:posts", "--check")[1].startswith("posts: initial status")


def test_the_worker_listens_where_the_setting_says(project: str) -> None:
    with (
        override_settings(OUTBOX={"LISTEN_DATABASE": "other"}),
        django_project.database(project, "other", NAME="direct"),
    ):
        found = settings_of_project()
    assert (conninfo_to_dict(str(found["listen_dsn"]))["dbname"], conninfo_to_dict(str(found["dsn"]))) == (
        "direct",
        conninfo_to_dict(dsn_of("default")),
    )


def test_exit_codes_are_those_of_the_command_line(project: str) -> None:
    assert run("show", "o-2")[0] == 1
    assert run("status", "--no-such-option")[0] == 2
    assert run("no-such-command")[0] == 2


def test_the_help_is_outboxs_own_and_names_manage_py(project: str) -> None:
    code, out, _ = run("worker", "--help")
    assert (code, out.splitlines()[0]) == (0, "Usage: manage.py outbox worker [OPTIONS]")
    assert run("--help")[1].startswith("Usage: manage.py outbox [OPTIONS] COMMAND")
    out = io.StringIO()
    with redirect_stdout(out):
        ManagementUtility(["manage.py", "help", "outbox"]).execute()
    assert out.getvalue().startswith("Usage: manage.py outbox [OPTIONS] COMMAND")


def test_options_of_manage_py_itself_are_followed_and_not_passed_on(project: str) -> None:
    assert run("status", "--json", "--settings", "apps.django_shop.settings", "--pythonpath=tests")[0] == 0


def test_call_command_prints_where_it_is_told_and_raises_what_django_expects(project: str) -> None:
    out = io.StringIO()
    call_command("outbox", "status", "--json", stdout=out)
    assert json.loads(out.getvalue())["workers"] == []
    with pytest.raises(CommandError) as failed:
        call_command("outbox", "show", "o-3", stderr=io.StringIO())
    assert failed.value.returncode == 1


def test_no_output_has_the_password(dsn: str) -> None:
    with django_project.database(dsn, PASSWORD="s3cr3t", PORT="1"):
        for command in (["status"], ["doctor"], ["worker", "--drain"], ["status", "--no"], ["--help"], ["migrate"]):
            _, out, err = run(*command)
            assert "s3cr3t" not in out + err, command


def test_a_setting_that_cannot_be_is_said_in_one_line() -> None:
    with override_settings(OUTBOX={"DATABASE": "gone"}):
        code, _, err = run("status")
    assert (code, err) == (1, "outbox: OUTBOX[\"DATABASE\"] is 'gone', and DATABASES has no such alias\n")


def test_a_project_without_pipelines_is_told_where_to_write_one(project: str) -> None:
    with override_settings(OUTBOX={"PIPELINES": []}, TASKS={}):
        code, _, err = run("worker", "--drain")
    assert (code, "this project has no pipelines" in err) == (1, True)


def test_a_worker_of_the_project_runs_in_two_processes(
    project: str, spawn: Callable[..., Process], conn: psycopg.Connection[Any]
) -> None:
    worker = spawn(
        "outbox", "worker", "--stage", "pay", "--processes", "2", "--lease", "2",
        program=("-m", "django"), env={"DJANGO_SETTINGS_MODULE": "apps.django_shop.settings", "OUTBOX_TEST_DJANGO": project},
    )  # fmt: skip
    wait_for(lambda: conn.execute("SELECT count(*) = 2 FROM outbox.workers").fetchone() == (True,))
    orders.submit(conn, "o-1", {})
    wait_for(lambda: getattr(orders.get(conn, "o-1"), "status", None) == "PAID")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
