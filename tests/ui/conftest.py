"""Provides a database with posts in many states, which the tests of a module share: they only look."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from pytest_postgresql.executors import NoopExecutor

from kit.databases import clone
from kit.servers import DEADLINE
from kit.shop import stock
from outbox.operations.sessions import Sessions
from outbox.ui import dashboard


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets pages take their time on a busy machine: only tests of what is late say how long they wait."""
    monkeypatch.setitem(dashboard.__kwdefaults__, "statement_timeout", DEADLINE)
    monkeypatch.setitem(Sessions.__init__.__kwdefaults__, "patience", DEADLINE)


@pytest.fixture(scope="module")
def stocked(template: NoopExecutor) -> Iterator[str]:
    """The DSN of a database in which `done` has completed, `review` waits for a person, `broken` is dead, `new` is ready."""
    with clone(template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            stock(conn, dsn)
        yield dsn
