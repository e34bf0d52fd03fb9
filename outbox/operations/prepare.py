"""Prepares a database for workflows: migrates the schema, and deploys an application's pipelines."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterable
from typing import Any, overload

import psycopg

from ..database import migrations
from ..database.drivers.borrowed import borrow
from ..database.drivers.connection import AsyncConn, SyncConn
from ..database.given import AnyDsn, is_dsn
from ..definition import dead_ends
from ..definition.deploy import deploy as deploy_one
from ..definition.deploy import lock_schedules
from ..definition.pipeline import Pipeline
from ..errors import InvalidInput
from ..texts import shown

log = logging.getLogger("outbox.deploy")


# Async connections first: some have the methods by which a sync one is told.
@overload
def migrate(where: AsyncConn) -> Coroutine[Any, Any, list[str]]: ...
@overload
def migrate(where: AnyDsn | SyncConn) -> list[str]: ...
def migrate(where: AnyDsn | SyncConn | AsyncConn) -> list[str] | Coroutine[Any, Any, list[str]]:
    """Creates or updates the schema `outbox`, as `outbox migrate` does, and returns the names of what was applied.

    `where` is a DSN or an open connection, of any kind that docs/connections.md names; a connection stays open. Await
    it on an async one. Any number of processes may migrate at once. Each step is a transaction of its own. If the
    connection is already in a transaction, all steps are part of that one.

    Raises SchemaError if the server is older than Postgres 15 or a later release has migrated the database,
    SettingsError if the DSN can't be read, InvalidInput if `where` is neither a DSN nor a connection, and the driver's
    errors if the database can't be reached or the role may not create the schema.
    """
    if is_dsn(where):
        return migrations.apply(where)
    return borrow(where, migrations.apply)


@overload
def deploy(
    conn: AsyncConn,
    pipelines: Pipeline[Any] | Iterable[Pipeline[Any]],
    *,
    end_waits: bool = False,
    strict: bool = False,
) -> Coroutine[Any, Any, dict[str, list[str]]]: ...
@overload
def deploy(
    conn: SyncConn, pipelines: Pipeline[Any] | Iterable[Pipeline[Any]], *, end_waits: bool = False, strict: bool = False
) -> dict[str, list[str]]: ...
def deploy(
    conn: SyncConn | AsyncConn,
    pipelines: Pipeline[Any] | Iterable[Pipeline[Any]],
    *,
    end_waits: bool = False,
    strict: bool = False,
) -> dict[str, list[str]] | Coroutine[Any, Any, dict[str, list[str]]]:
    """Writes pipelines into the database, as `outbox deploy` does: statuses, legal changes, routes and schedules.

    Returns what has changed, in words, as a list for each pipeline name; the list is empty if nothing has. All
    pipelines are deployed in one transaction, or in the caller's if the connection is in one. With `end_waits`, a stage
    may take a status in which workflows wait; that ends their waits. `Pipeline.take_over` allows it for one status.
    Dead ends of a definition, and stages and statuses that nothing leads to, are logged as warnings; with `strict` they
    raise DefinitionError.

    `conn` is a connection of any kind that docs/connections.md names. Await it on an async one.

    Raises SchemaError if the schema is missing or older than this code, Stranded if the new version would leave
    workflows without a way on or end what they wait for, DefinitionError if a definition contradicts itself,
    InvalidInput if an argument has the wrong type, and psycopg's LockNotAvailable if other transactions that have
    changed workflows, or ticks of a schedule that changes, stay open for more than about five seconds. After any of
    these errors, nothing is changed.
    """
    several = list(pipelines) if isinstance(pipelines, Iterable) else [pipelines]
    for each in several:
        if not isinstance(each, Pipeline):
            raise InvalidInput("pipelines", f"{shown(each)} is not a Pipeline")
    for each in several:
        if strict:
            dead_ends.refuse(each)
        for line in dead_ends.look(each):
            log.warning("%s: %s", each.name, line)

    def write(own: psycopg.Connection[Any]) -> dict[str, list[str]]:
        with own.transaction():
            migrations.require(own)
            lock_schedules(own, several)
            return {each.name: deploy_one(own, each, end_waits=end_waits) for each in several}

    return borrow(conn, write)
