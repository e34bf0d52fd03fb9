"""examples/django_shop: its own tests pass, by Django's runner and by pytest's, and its project is in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_postgresql.executors import NoopExecutor

from kit.databases import janitor
from kit.manage import manage, output

SHOP = Path(__file__).parents[2] / "examples" / "django_shop"
DATABASE = "django_shop"


@pytest.fixture(scope="module")
def server_with_database(empty_template: NoopExecutor) -> Iterator[NoopExecutor]:
    """The server, with a database that has nothing in it. Its superuser may make test databases."""
    with janitor(empty_template, DATABASE):
        yield empty_template


def at(server: NoopExecutor) -> dict[str, object]:
    return {"host": server.host, "port": server.port, "user": server.user, "dbname": DATABASE}


def test_its_tests_pass_by_djangos_runner(server_with_database: NoopExecutor) -> None:
    told = manage(SHOP, "config.settings", at(server_with_database), "test --noinput")
    assert "Ran 6 tests" in told
    assert "Destroying test database" in told


def test_its_tests_pass_by_pytest(server_with_database: NoopExecutor) -> None:
    found = at(server_with_database)
    env = {**os.environ, **{f"PG{key.upper()}": str(value) for key, value in found.items()}, "PGDATABASE": DATABASE}
    env.pop("DJANGO_SETTINGS_MODULE", None)  # other tests of this process may have set it
    told = output(SHOP, env, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "shipped or InOneTransaction")
    assert "3 passed" in told


def test_a_fresh_database_is_ready_after_migrate(server_with_database: NoopExecutor) -> None:
    commands = ("migrate", "makemigrations --check", "check --database default", "outbox deploy --check")
    told = manage(SHOP, "config.settings", at(server_with_database), *commands)
    assert "Outbox: orders: initial status: (none) -> RECEIVED" in told
    assert "No changes detected" in told
    assert "no issues" in told
    assert "orders: nothing to change" in told
