"""The fixtures for pytest, in a run of their own: the server, the databases and the overridden pipelines."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg

SUITE = """
import os
import psycopg
import pytest
from outbox import Pipeline, Run
from outbox.testing import clean, drain, submitted

def pipeline(name):
    made = Pipeline(name, initial="NEW", final={"DONE"})
    made.stage("work", on="NEW", to="DONE")(lambda run: None)
    return made

orders = pipeline("orders")

@pytest.fixture(scope="session")
def outbox_pipelines():
    return orders

@pytest.mark.parametrize("n", [1, 2])
def test_each_test_has_a_database_of_its_own(outbox_conn, outbox_database, n):
    assert submitted(outbox_conn, orders) == []
    orders.submit(outbox_conn, "a", {})
    assert drain(orders, outbox_database).counts.done == 1
    assert clean(outbox_conn) == 1

class TestOthers:
    @pytest.fixture
    def outbox_pipelines(self):
        return [pipeline("others")]

    @pytest.mark.parametrize("n", [1, 2])
    def test_a_class_may_have_others(self, outbox_conn, n):
        assert outbox_conn.execute("SELECT pipeline FROM outbox.pipelines").fetchall() == [("others",)]

@pytest.fixture(scope="module")
def shared(outbox_databases):
    with outbox_databases.clone([orders]) as dsn:
        yield dsn

def test_a_module_may_have_one(shared, outbox_server):
    with psycopg.connect(shared) as conn:
        orders.submit(conn, "a", {})
    assert outbox_server
    with open("home.txt", "w") as file:
        file.write(os.environ["OUTBOX_TEST_HOME"])
"""


def run(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    (folder / "test_suite.py").write_text(textwrap.dedent(SUITE))
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "OUTBOX_", "DJANGO_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(folder), *arguments],
        cwd=folder, env={**kept, **(env or {})}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_suite_has_databases_on_the_server_that_it_names(tmp_path: Path, server: object, admin_dsn: str) -> None:
    done = run(tmp_path, env={"OUTBOX_TEST_DSN": admin_dsn})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    with psycopg.connect(admin_dsn) as conn:
        assert conn.execute("SELECT datname FROM pg_database WHERE datname LIKE 'outbox_test_%'").fetchall() == []


def test_without_one_all_processes_share_a_bundled_server_that_ends_with_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, "-n", "2", env={"TMPDIR": "/tmp"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    assert not Path((tmp_path / "home.txt").read_text()).exists()


def test_the_plugin_imports_nothing_of_outbox_by_itself(tmp_path: Path) -> None:
    code = "import sys, pytest_outbox; assert not [name for name in sys.modules if name.split('.')[0] in ('outbox', 'psycopg')]"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
