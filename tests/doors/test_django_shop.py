"""examples/django_shop: its own tests pass, by Django's runner and by pytest's, and its project is in order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from pytest_postgresql.executors import NoopExecutor

from kit.databases import janitor

SHOP = Path(__file__).parents[2] / "examples" / "django_shop"


@pytest.fixture(scope="module")
def database(empty_template: NoopExecutor) -> str:
    """A database with nothing in it, and the variables that lead to it, as a role that may make databases."""
    janitor(empty_template, "django_shop").init()
    return "django_shop"


def run(server: NoopExecutor, database: str, *arguments: str) -> str:
    at = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": server.user, "PGDATABASE": database}
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", *arguments],
        cwd=SHOP,
        env={**os.environ, **at},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_its_tests_pass_by_djangos_runner(empty_template: NoopExecutor, database: str) -> None:
    told = run(empty_template, database, "manage.py", "test", "--noinput")
    assert "\nOK\n" in told
    assert "Destroying test database" in told


def test_its_tests_pass_by_pytest(empty_template: NoopExecutor, database: str) -> None:
    told = run(empty_template, database, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "6 passed" in told


def test_a_fresh_database_is_ready_after_migrate(empty_template: NoopExecutor, database: str) -> None:
    run(empty_template, database, "manage.py", "migrate")
    assert "No changes detected" in run(empty_template, database, "manage.py", "makemigrations", "--check")
    assert "no issues" in run(empty_template, database, "manage.py", "check", "--database", "default")
    assert "orders: nothing to change" in run(empty_template, database, "manage.py", "outbox", "deploy", "--check")
    dsn = psycopg.conninfo.make_conninfo(
        host=empty_template.host, port=empty_template.port, user=empty_template.user, dbname=database
    )
    with psycopg.connect(dsn) as conn:
        found = conn.execute("SELECT pipeline FROM outbox.pipelines ORDER BY 1").fetchall()
    assert found == [("orders",), ("tasks",)]
