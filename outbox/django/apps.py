"""Defines the app `outbox.django`."""

from __future__ import annotations

import sys
from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.db import connections
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate, pre_migrate

from . import project


class OutboxConfig(AppConfig):
    """The app: its migrations, checks, models, admin pages and `manage.py outbox`."""

    name = "outbox.django"
    label = project.APP
    verbose_name = "Outbox"

    def ready(self) -> None:
        from ..definition import hooks
        from ..process import threads
        from . import checks as ours
        from .stale import Healing, close_idle, end_loop, note_connected

        checks.register(ours.check_project)
        checks.register(ours.check_schema, checks.Tags.database)
        if Healing not in hooks.EVERYWHERE:
            hooks.EVERYWHERE.append(Healing)
            threads.LEAVING.append(close_idle)
            threads.ENDING.append(end_loop)
        connection_created.connect(note_connected, dispatch_uid="outbox")
        pre_migrate.connect(_before_migrate, sender=self, dispatch_uid="outbox")
        post_migrate.connect(_after_migrate, sender=self, dispatch_uid="outbox")


def _before_migrate(using: str, verbosity: int = 1, stdout: Any = None, **_: Any) -> None:
    from . import schema

    if project.is_ours(using):
        schema.upgrade(connections[using], _tell(verbosity, stdout))


def _after_migrate(using: str, verbosity: int = 1, stdout: Any = None, **_: Any) -> None:
    from . import schema

    if project.is_ours(using):
        if schema.has_no_migrations():
            schema.upgrade(connections[using], _tell(verbosity, stdout))
        if project.load().deploy:
            schema.deploy_pipelines(connections[using], _tell(verbosity, stdout))


def _tell(verbosity: int, stdout: Any) -> Any:
    out = stdout or sys.stdout
    return (lambda line: out.write(f"{line}\n")) if verbosity else (lambda line: None)
