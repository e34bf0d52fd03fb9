"""Sets Django up with the project of the tests, apps/django_shop. What uses Django imports this first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import django
import pytest
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

with pytest.MonkeyPatch.context() as _environment:  # what tests start is not of this project
    _environment.setenv("DJANGO_SETTINGS_MODULE", "apps.django_shop.settings")
    django.setup()


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
