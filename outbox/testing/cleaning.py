"""Empties a test's database, and no other one."""

from __future__ import annotations

import re
from collections.abc import Coroutine
from typing import Any, overload

from .. import texts
from ..client.execute import Steps, execute
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..errors import OutboxError
from .running import own_name

SQL = statements.load("cleaning")

KEPT = {
    "legal_changes", "limits", "pipelines", "relays", "routes", "schedules", "schema_migrations", "stages", "workers",
}  # fmt: skip
"""The tables that stay: what deploys have written, and what processes are. A test compares these with the schema."""

_A_TEST_S = re.compile(r"test", re.IGNORECASE)
"""What the name of a test's database has in it: that is what pytest-django, pytest-postgresql and people call it."""


@overload
def clean(conn: AsyncConn, *, database: str | None = None) -> Coroutine[Any, Any, int]: ...
@overload
def clean(conn: SyncConn, *, database: str | None = None) -> int: ...
def clean(conn: Any, *, database: str | None = None) -> Any:
    """Deletes all workflows, history, messages, the inbox, questions and pauses. Returns how many workflows.

    What deploys have written stays. It happens in the caller's transaction, or in one of its own in autocommit; await
    it on an async connection. The role must own the schema.

    Raises OutboxError, and deletes nothing, if a worker of another process is at work, or if the database's name has no
    "test" in it: to empty another database, give its name as `database`.
    """
    return execute(conn, _clean(database), whole=True)


def _clean(database: str | None) -> Steps[int]:
    ((name, workers),) = yield SQL["cleaning_asks"], {"name": own_name()}
    if database is None and not _A_TEST_S.search(name):
        raise OutboxError(
            f'the database "{texts.printable(name)}" has no "test" in its name, and is not emptied. '
            f"If that is what you want: clean(conn, database={name!r})"
        )
    if database is not None and database != name:
        raise OutboxError(f'this is the database "{texts.printable(name)}", not "{texts.printable(str(database))}"')
    if workers:
        raise OutboxError(
            f'workers are at work in "{texts.printable(name)}", which is not emptied: {texts.printable(workers)}'
        )
    yield SQL["cleaning_begins"], {}
    ((count,),) = yield SQL["workflows_clean"], {}
    yield SQL["rest_clean"], {}
    yield SQL["counts_clean"], {}
    yield SQL["cleaning_ends"], {}
    return int(count)
