"""Drops a pipeline: what deploys have written of it, and, if wanted, its workflows and their history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from ..database import session, statements
from ..database.refusals import raised_as_ours
from ..database.session import tuples
from ..definition.deploy import lock_to_write
from ..errors import NotFound, OutboxError

SQL = statements.load("drop")

BATCH = 1_000
"""How many workflows one transaction deletes, which holds their rows for well below a second."""

Conn = psycopg.Connection[Any]


def belongings(conn: Conn, pipeline: str) -> dict[str, int]:
    """Returns the pipelines that are dropped, the pipeline and its reactions, with the number of their workflows.

    Raises NotFound if the pipeline is not deployed, and OutboxError if it is a reaction that still reacts.
    """
    found = tuples(conn, SQL["pipelines_to_drop"], pipeline=pipeline)
    if not any(name == pipeline for name, _, _ in found):
        raise NotFound(f'pipeline "{pipeline}" is not deployed here')
    if reacts_with := found[0][2]:
        raise OutboxError(
            f'"{pipeline}" is a reaction of "{reacts_with}": deploy that one without it first, or drop that one'
        )
    return {name: count for name, count, _ in found}


def drop(
    conn: Conn,
    pipeline: str,
    *,
    with_workflows: bool = False,
    with_history: bool = False,
    on_deleted: Callable[[int], None] = lambda count: None,
) -> int:
    """Drops a pipeline and its reactions, and returns how many workflows were deleted.

    Deletes the workflows in batches of their own transactions before the pipeline. So a drop that was interrupted is
    repeated, and others go on meanwhile. What a handler that still runs returns changes nothing.

    Raises PipelineInUse if there are workflows, unless `with_workflows`; NotFound and OutboxError as `belongings`.
    """
    names, deleted = list(belongings(conn, pipeline)), 0
    with raised_as_ours():
        if with_workflows:
            for name in names:
                while count := _delete_some(conn, name, with_history):
                    deleted += count
                    on_deleted(deleted)
        with session.transaction(conn):
            lock_to_write(conn, names)
            while with_workflows and (count := sum(_delete_some(conn, name, with_history) for name in names)):
                deleted += count
            conn.execute(SQL["pipelines_delete"], {"pipelines": names})
    return deleted


def _delete_some(conn: Conn, pipeline: str, with_history: bool) -> int:
    with conn.transaction():
        conn.execute(SQL["retention_begins"])
        ((ids,),) = tuples(conn, SQL["workflows_lock"], pipeline=pipeline, limit=BATCH)
        if ids is None:
            return 0
        ((count,),) = tuples(conn, SQL["workflows_delete"], ids=ids, history=with_history)
    return int(count)
