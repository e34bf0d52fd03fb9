"""Defines the app's system checks: `manage.py check`, and `manage.py check --database default`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core import checks
from django.db import Error, connections, router

from ..errors import OutboxError
from . import discovery, project, schema


def check_project(**_: Any) -> list[checks.CheckMessage]:
    """Returns what is wrong with the setting OUTBOX, with the routers, and with the pipelines."""
    try:
        found = project.load()
    except OutboxError as error:
        return [checks.Error(str(error), id="outbox.E001")]
    problems: list[checks.CheckMessage] = []
    if not router.allow_migrate(found.database, project.APP):
        problems.append(
            checks.Error(
                f'DATABASE_ROUTERS keep the app "{project.APP}" from the database "{found.database}".',
                hint=f'Have allow_migrate("{found.database}", "{project.APP}") return True, or name in '
                'OUTBOX["DATABASE"] the database that is to have the schema.',
                id="outbox.E002",
            )
        )
    try:
        discovery.pipelines()
    except OutboxError as error:
        problems.append(checks.Error(str(error), id="outbox.E003"))
    return problems


def check_schema(databases: Sequence[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """Returns a warning if the schema in the database is older than this code. `migrate` itself runs this check."""
    try:
        alias = project.load().database
        if alias not in (databases or ()):
            return []
        told = schema.problem(connections[alias])
    except (OutboxError, Error):
        return []  # the other checks, and Django's own, say why
    return [checks.Warning(f"{told}.", id="outbox.W001")] if told else []
