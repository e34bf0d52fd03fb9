"""Fixtures of Outbox for pytest. See docs/testing.md.

This module is loaded with pytest wherever Outbox is installed. It is not in the package, and imports the package where
a fixture is used, so that a test run without these fixtures doesn't wait for it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import psycopg

    from outbox.testing.databases import Databases

_HOME = "OUTBOX_TEST_HOME"
"""Names the folder of the bundled server to the processes of a run. The process that has begun it removes it."""

MEMORY, PLENTY = Path("/dev/shm"), 2 * 2**30  # noqa: S108
"""Where the bundled server's data is if so many bytes are free there. A database is a thousand files, and a clone of it
takes ten times as long on a disk."""

_mine: list[Path] = []


def pytest_configure(config: pytest.Config) -> None:
    if _HOME not in os.environ:
        _mine.append(folder() / f"outbox-test-{os.getpid()}")
        os.environ[_HOME] = str(_mine[0])


def pytest_unconfigure(config: pytest.Config) -> None:
    while _mine:
        shutil.rmtree(_mine.pop(), ignore_errors=True)
        del os.environ[_HOME]


@pytest.fixture(scope="session")
def outbox_server() -> Iterator[str]:
    """The DSN of a server for tests: OUTBOX_TEST_DSN, or the bundled one, which all processes of a run share."""
    with _databases().server(Path(os.environ[_HOME])) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def outbox_databases(outbox_server: str) -> Iterator[Databases]:
    """Makes databases on the server: `with outbox_databases.clone(pipelines) as dsn`."""
    made = _databases().Databases(outbox_server, os.environ.get("PYTEST_XDIST_WORKER", ""))
    yield made
    made.close()


@pytest.fixture(scope="session")
def outbox_pipelines() -> Any:
    """The pipelines that are deployed in `outbox_database`: a Pipeline, or several. Override it."""
    return []


@pytest.fixture
def outbox_database(outbox_databases: Databases, outbox_pipelines: Any) -> Iterator[str]:
    """The DSN of a database of the test's own, with the schema, and with `outbox_pipelines` deployed."""
    with outbox_databases.clone(outbox_pipelines) as dsn:
        yield dsn


@pytest.fixture
def outbox_conn(outbox_database: str) -> Iterator[psycopg.Connection[Any]]:
    """A psycopg connection to `outbox_database`, in autocommit."""
    import psycopg

    with psycopg.connect(outbox_database, autocommit=True) as conn:
        yield conn


def folder() -> Path:
    """Returns the folder in which that of the bundled server is made."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
        found = os.statvfs(MEMORY)
        if found.f_bavail * found.f_frsize >= PLENTY:
            return MEMORY
    return Path(tempfile.gettempdir())


def _databases() -> Any:
    try:
        from outbox.testing import databases
    except ModuleNotFoundError as error:
        if error.name != "pytest_postgresql":
            raise
        pytest.fail(
            "the fixtures of Outbox need pytest-postgresql: pip install 'outbox-engine[testing]'", pytrace=False
        )
    return databases
