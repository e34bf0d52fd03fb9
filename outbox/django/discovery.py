"""Finds the pipelines of a Django project: those in the module `pipelines` of each app, or those that it names."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import django
from django.apps import apps
from django.conf import settings
from django.utils.module_loading import module_has_submodule

from ..commands import application
from ..definition.pipeline import Pipeline
from ..errors import SettingsError
from . import project

MODULE = "pipelines"
"""The module of an app in which its pipelines are looked for."""


def pipelines() -> list[Pipeline[Any]]:
    """Returns the pipelines of the project: of each app's module `pipelines`, or what OUTBOX["PIPELINES"] names.

    Those of the queues in TASKS come with them.

    Raises SettingsError if a module can't be imported, or if two pipelines have the same name.
    """
    found: dict[str, tuple[Pipeline[Any], str]] = {}
    named = {source: application.find_all(source, "the pipelines of") for source in _sources()}
    for source, several in {**named, "TASKS": _of_tasks()}.items():
        for pipeline in several:
            before, other = found.setdefault(pipeline.name, (pipeline, source))
            if before is not pipeline:
                raise SettingsError(f'two pipelines are named "{pipeline.name}": one of {other}, another of {source}')
    return [pipeline for pipeline, _ in found.values()]


def _sources() -> list[str]:
    named = project.load().pipelines
    if named is not None:
        return list(named)
    return [f"{app.name}.{MODULE}" for app in apps.get_app_configs() if module_has_submodule(app.module, MODULE)]


def _of_tasks() -> list[Pipeline[Any]]:
    """Returns the pipelines of the queues in TASKS, if a backend there is Outbox's."""
    if not settings.is_overridden("TASKS") or not any(map(find_spec, ("django_tasks", "django.tasks"))):
        return []
    from . import tasks

    return tasks.pipelines()


class Declared:
    """The pipelines of the project, found when they are asked for."""

    def __iter__(self) -> Iterator[Pipeline[Any]]:
        if not apps.ready:  # `outbox dev` imports the project in processes that are not manage.py's
            django.setup()
        if not (found := pipelines()):
            raise SettingsError(
                'this project has no pipelines. Define one in a module "pipelines" of an app in INSTALLED_APPS, or '
                'name its module in OUTBOX["PIPELINES"]'
            )
        return iter(found)


declared = Declared()
"""What `manage.py outbox` passes as `--app`."""
