"""Keeps Alembic away from Outbox's schema, and brings that schema up to date in a revision.

Alembic's autogenerate, with `include_schemas=True`, takes what it doesn't know for something to be dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from alembic.util import CommandError

from .operations import prepare

SCHEMA = "outbox"


class Op(Protocol):
    """Alembic's `op`, as a revision imports it."""

    def get_bind(self) -> Any: ...
    def get_context(self) -> Any: ...


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """Leaves the schema `outbox` out of what autogenerate reads in the database.

    It is for `context.configure(include_name=…)`. Call it from yours if you have one.
    """
    return (name if type_ == "schema" else parent_names.get("schema_name")) != SCHEMA


def include_object(object: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Leaves the schema `outbox` out of what autogenerate compares, in the database and in your models.

    It is for `context.configure(include_object=…)`, and needed if your metadata has Outbox's tables, to read them.
    """
    table = object if type_ == "table" else getattr(object, "table", None)
    return getattr(table, "schema", None) != SCHEMA


def migrate(op: Op) -> list[str]:
    """Brings the schema `outbox` up to date in the revision's transaction, and returns the names of what was applied.

    It works on each driver that docs/connections.md names, with Alembic's templates for sync and async engines. Raises
    CommandError in offline mode, and else what `outbox.migrate` raises.
    """
    if op.get_context().as_sql:
        raise CommandError(
            "a script for Outbox depends on what the database has. Print it with: outbox migrate --sql. Then run this "
            "revision online, or record it with: alembic stamp"
        )
    applied: list[str] = prepare.migrate(op.get_bind())
    return applied
