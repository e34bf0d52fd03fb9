"""Sets Django up with the project of the tests, apps/django_shop. What uses Django imports this first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import django
import psycopg
import pytest
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

from kit.databases import OWNER
from outbox.definition import hooks

with pytest.MonkeyPatch.context() as _environment:  # what tests start is not of this project
    _environment.setenv("DJANGO_SETTINGS_MODULE", "apps.django_shop.settings")
    django.setup()

from apps.django_shop.models import Order
from outbox.django.stale import Healing


@contextmanager
def database(dsn: str, alias: str = "default", **more: object) -> Iterator[None]:
    """Has an alias lead to a database, with these keys of DATABASES, for as long as the context lasts."""
    connection = connections[alias]
    kept = dict(connection.settings_dict)
    at = conninfo_to_dict(dsn)
    where = {"NAME": at["dbname"], "USER": at["user"], "HOST": at["host"], "PORT": at["port"]}
    connection.settings_dict.update({**where, **more})
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.clear()
        connection.settings_dict.update(kept)


# The other tests of this process run without it.
hooks.EVERYWHERE.remove(Healing)


@contextmanager
def shop(dsn: str, **more: object) -> Iterator[None]:
    """Has the project, with the table of its model, in a database with the schema. Handlers run as in its workers."""
    with psycopg.connect(dsn.replace(f"{OWNER}@", "postgres@"), autocommit=True) as conn:
        conn.execute(f"GRANT ALL ON SCHEMA public TO {OWNER}")
    with database(dsn, **more):
        with connections["default"].schema_editor() as editor:
            editor.create_model(Order)
        hooks.EVERYWHERE.append(Healing)
        try:
            yield
        finally:
            hooks.EVERYWHERE.remove(Healing)
