"""Prepares a database for workflows: migrates the schema, and deploys an application's pipelines."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import psycopg

from ..database import migrations
from ..database.session import connect
from ..definition import dead_ends
from ..definition.deploy import deploy as deploy_one
from ..definition.deploy import lock_schedules
from ..definition.pipeline import Pipeline
from ..errors import InvalidInput
from ..texts import shown

log = logging.getLogger("outbox.deploy")

Conn = psycopg.Connection[Any]


def migrate(where: str | Conn) -> list[str]:
    """Creates or updates the schema `outbox`, as `outbox migrate` does, and returns the names of what was applied.

    `where` is a DSN or an open connection; a connection stays open. Any number of processes may migrate at once. Each
    step is a transaction of its own. If the connection is already in a transaction, all steps are part of that one.

    Works on sync connections only. In async code, call `await asyncio.to_thread(outbox.migrate, dsn)`.

    Raises SchemaError if the server is older than Postgres 15 or a later release has migrated the database,
    SettingsError if the DSN can't be read, InvalidInput if `where` is neither a DSN nor a connection, and psycopg's
    errors if the database can't be reached or the role may not create the schema.
    """
    if isinstance(where, str):
        with connect(where, "migrate", pooled=True) as conn:
            return migrations.apply(conn)
    _require_sync(where, "where", "a DSN or a sync psycopg connection")
    return migrations.apply(where)


def deploy(
    conn: Conn, pipelines: Pipeline[Any] | Iterable[Pipeline[Any]], *, end_waits: bool = False, strict: bool = False
) -> dict[str, list[str]]:
    """Writes pipelines into the database, as `outbox deploy` does: statuses, legal changes, routes and schedules.

    Returns what has changed, in words, as a list for each pipeline name; the list is empty if nothing has. All
    pipelines are deployed in one transaction, or in the caller's if the connection is in one. With `end_waits`, a stage
    may take a status in which workflows wait; that ends their waits. `Pipeline.take_over` allows it for one status.
    Dead ends of a definition, and stages and statuses that nothing leads to, are logged as warnings; with `strict` they
    raise DefinitionError.

    Works on sync connections only. In async code, call it in a thread with a connection of its own.

    Raises SchemaError if the schema is missing or older than this code, Stranded if the new version would leave
    workflows without a way on or end what they wait for, DefinitionError if a definition contradicts itself,
    InvalidInput if an argument has the wrong type, and psycopg's LockNotAvailable if other transactions that have
    changed workflows, or ticks of a schedule that changes, stay open for more than about five seconds. After any of
    these errors, nothing is changed.
    """
    _require_sync(conn, "conn", "a sync psycopg connection")
    several = list(pipelines) if isinstance(pipelines, Iterable) else [pipelines]
    for each in several:
        if not isinstance(each, Pipeline):
            raise InvalidInput("pipelines", f"{shown(each)} is not a Pipeline")
    for each in several:
        if strict:
            dead_ends.refuse(each)
        for line in dead_ends.look(each):
            log.warning("%s: %s", each.name, line)
    with conn.transaction():
        migrations.require(conn)
        lock_schedules(conn, several)
        return {each.name: deploy_one(conn, each, end_waits=end_waits) for each in several}


def _require_sync(conn: object, field: str, wanted: str) -> None:
    if not isinstance(conn, psycopg.Connection):
        raise InvalidInput(field, f"must be {wanted}, not {type(conn).__name__}")
