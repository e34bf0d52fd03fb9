"""Runs everything that is due, in the test's own process: with a worker, or inside the caller's transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any, Unpack

import psycopg

from ..database import migrations
from ..database.given import is_dsn
from ..database.refusals import raised_as_ours
from ..definition import deployed
from ..definition.pipeline import Pipeline
from ..engine.options import WorkerOptions
from ..errors import InvalidInput
from ..texts import shown
from .connections import plain, psycopg_of, require_transaction
from .inside import Inside, InsideAsync
from .running import no_loop
from .sequence import Sequence, stages_before
from .working import Drained, work

Pipelines = Pipeline[Any] | Iterable[Pipeline[Any]]


def drain(
    pipelines: Pipelines,
    where: Any,
    *,
    raise_errors: bool = True,
    retries: bool = False,
    until: str | Collection[str] | None = None,
    **options: Unpack[WorkerOptions],
) -> Drained:
    """Runs everything that is due, and returns how the attempts have ended.

    `where` is a DSN, or a connection that is in a transaction: of psycopg, of Django, or a session of SQLAlchemy on
    psycopg. A DSN is given to a worker of this process, whose other options are `options`. On a connection each step is
    a savepoint of the caller's transaction, and nothing is committed. See docs/testing.md for what differs.

    With `raise_errors`, the first exception of a handler is raised, once its failure is written; Retry and Reject are
    not errors. With `retries`, an attempt that has failed is made again at once, and only the last failure is raised;
    otherwise jobs that are scheduled for later are left. `until` names statuses in which workflows are left: the stages
    that take them don't run.

    Raises InvalidInput for a connection that can't be used, or that a handler with transaction=True can't be given.
    """
    several = checked(pipelines)
    if is_dsn(where):
        no_loop("drain_async")
        return asyncio.run(work(several, where, raise_errors, retries, stages_before(several, until), dict(options)))
    conn = psycopg_of(where)
    if not isinstance(conn, psycopg.Connection):
        raise InvalidInput("conn", "is async: await outbox.testing.drain_async(…)")
    _without_options(dict(options))
    require_transaction(conn)
    with raised_as_ours(), plain(conn):
        _require(conn, several)
    runner = Inside(conn, where)
    made = Sequence(several, runner.kept, stages_before(several, until), raise_errors, retries)
    with raised_as_ours():
        runner.run(made)
    return Drained(made.counts)


async def drain_async(
    pipelines: Pipelines,
    where: Any,
    *,
    raise_errors: bool = True,
    retries: bool = False,
    until: str | Collection[str] | None = None,
    **options: Unpack[WorkerOptions],
) -> Drained:
    """Does what `drain` does, in a running event loop: with a DSN, or on an async connection of psycopg."""
    several = checked(pipelines)
    if is_dsn(where):
        return await work(several, where, raise_errors, retries, stages_before(several, until), dict(options))
    conn = psycopg_of(where)
    if not isinstance(conn, psycopg.AsyncConnection):
        raise InvalidInput("conn", "is sync: call outbox.testing.drain(…), in a thread")
    _without_options(dict(options))
    require_transaction(conn)
    runner = InsideAsync(conn)
    made = Sequence(several, runner.kept, stages_before(several, until), raise_errors, retries)
    with raised_as_ours():
        await runner.run(made)
    return Drained(made.counts)


def checked(pipelines: Pipelines) -> list[Pipeline[Any]]:
    """Returns pipelines as a list. Raises InvalidInput for what isn't one."""
    several = list(pipelines) if isinstance(pipelines, Iterable) else [pipelines]
    for each in several:
        if not isinstance(each, Pipeline):
            raise InvalidInput("pipelines", f"{shown(each)} is not a Pipeline")
    return several


def _without_options(options: dict[str, Any]) -> None:
    if options:
        raise InvalidInput(
            "options", f"{', '.join(options)} is for a worker, with a DSN; nothing works beside a transaction"
        )


def _require(conn: psycopg.Connection[Any], pipelines: list[Pipeline[Any]]) -> None:
    migrations.require(conn)
    for pipeline in pipelines:
        deployed.require(conn, pipeline, list(pipeline.stages))
