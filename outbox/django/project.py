"""Reads what a Django project says of Outbox: its setting OUTBOX, and the DSN of its database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.dispatch import receiver
from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

from ..errors import SettingsError
from ..texts import shown

APP = "outbox"
"""The label of the app, which routers and migrations know it by."""


@dataclass(frozen=True, slots=True)
class Project:
    """The setting OUTBOX, with its defaults.

    `database` and `listen_database` are aliases in DATABASES; the second is for LISTEN, if the first leads through a
    pooler. `pipelines` names modules, or objects in them as `module:object`; None: the module `pipelines` of each app.
    `deploy`: `migrate` also deploys the pipelines.
    """

    database: str = DEFAULT_DB_ALIAS
    listen_database: str | None = None
    pipelines: tuple[str, ...] | None = None
    deploy: bool = True


@cache
def load() -> Project:
    """Returns the project's setting OUTBOX. Raises SettingsError, which names the key, if it is not as it should be."""
    given = getattr(settings, "OUTBOX", {})
    if not isinstance(given, Mapping):
        raise SettingsError(f"OUTBOX must be a dict, not {shown(given)}")
    keys = {field.name.upper(): field.name for field in fields(Project)}
    for key in given:
        if key not in keys:
            raise SettingsError(f"OUTBOX has no key {shown(key)}; the keys are {', '.join(sorted(keys))}")
    found = Project(**{keys[key]: _checked(key, value) for key, value in given.items()})
    for key, alias in (("DATABASE", found.database), ("LISTEN_DATABASE", found.listen_database)):
        if alias is not None and alias not in connections.settings:
            raise SettingsError(f'OUTBOX["{key}"] is {shown(alias)}, and DATABASES has no such alias')
        if alias is not None and connections[alias].vendor != "postgresql":
            engine = connections[alias].settings_dict["ENGINE"]
            raise SettingsError(
                f'DATABASES["{alias}"] has the engine {engine}: Outbox\'s tables are in a Postgres. '
                f'Name another alias in OUTBOX["{key}"]'
            )
    return found


@receiver(setting_changed)
def _forget(setting: str, **_: Any) -> None:
    """Reads the settings again when a test has changed them."""
    if setting in ("OUTBOX", "DATABASES"):
        load.cache_clear()


def _checked(key: str, value: Any) -> Any:
    match key:
        case "PIPELINES" if value is not None:
            if isinstance(value, str) or not isinstance(value, list | tuple) or not all(map(_is_text, value)):
                raise SettingsError(f'OUTBOX["PIPELINES"] must be a list of "module" or "module:object", not {value!r}')
            return tuple(value)
        case "DATABASE" | "LISTEN_DATABASE" if not (_is_text(value) or (value is None and key != "DATABASE")):
            raise SettingsError(f'OUTBOX["{key}"] must be an alias in DATABASES, not {shown(value)}')
        case "DEPLOY" if not isinstance(value, bool):
            raise SettingsError(f'OUTBOX["DEPLOY"] must be True or False, not {shown(value)}')
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def is_ours(alias: str) -> bool:
    """Tells whether the schema `outbox` is in this database, and the project's routers let migrations run there."""
    return alias == load().database and bool(router.allow_migrate(alias, APP))


def dsn(alias: str | None = None) -> str:
    """Returns the DSN of a database in DATABASES, with its password. Default: the one that OUTBOX names.

    It has what libpq knows of OPTIONS, such as `service`, `sslmode` and `options`, and the role of `assume_role`. What
    only Django or psycopg know, such as `pool`, is not in it. In a test, it leads to the test's database. Raises
    SettingsError if the alias leads to no Postgres.
    """
    connection = connections[alias or load().database]
    try:
        params = connection.get_connection_params()
    except ImproperlyConfigured as error:
        raise SettingsError(" ".join(str(error).split())) from None
    known = {option.keyword.decode() for option in Conninfo.get_defaults()} - {"client_encoding"}
    found = {name: str(value) for name, value in params.items() if name in known and value not in (None, "")}
    if role := connection.settings_dict["OPTIONS"].get("assume_role"):
        quoted = "".join(f"\\{sign}" if sign in "\\ " else sign for sign in role)
        found["options"] = f"{found.get('options', '')} -c role={quoted}".strip()
    return make_conninfo("", **found)
