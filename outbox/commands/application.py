"""Finds what a user has written, by a name such as `module:object`: pipelines, or the target of a relay."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..definition.pipeline import Pipeline
from ..definition.reasons import describe
from ..errors import SettingsError
from ..messages.target import Target


def load(app: str | None) -> list[Pipeline[Any]]:
    """Returns the pipelines that `module:object` names: a Pipeline, an iterable of Pipelines, or all of a module.

    The current folder is importable, as with `python -m`. Raises SettingsError, which says what was found, if there is
    no pipeline.
    """
    if not app:
        raise SettingsError("no application is given: give --app module:object, or set OUTBOX_APP")
    found = _find("--app", app)
    pipelines = _pipelines(found)
    if not pipelines:
        raise SettingsError(f"--app {app} is {_kind(found)}: it must be a Pipeline, several, or a module that has some")
    return pipelines


def find_all(name: str, what: str) -> list[Pipeline[Any]]:
    """Returns the pipelines that `module:object` names, or none. `what` is what an error says that it is."""
    return _pipelines(_find(what, name))


def find(app: str, name: str) -> Pipeline[Any]:
    """Returns the pipeline of this name in `module:object`. Raises SettingsError if there is none."""
    for pipeline in load(app):
        if pipeline.name == name:
            return pipeline
    raise SettingsError(f"--app {app} has no pipeline {name!r}")


def target(name: str) -> Target:
    """Returns the relay's target that `module:object` names: a Target, or a class or function that makes one."""
    found = _find("--target", name)
    if callable(found):
        try:
            found = found()
        except Exception as error:
            raise SettingsError(f"--target {name}: making it failed: {describe(error)}") from error
    if not isinstance(found, Target):
        raise SettingsError(f"--target {name} is {_kind(found, 'Target')}: it must be a Target, or make one")
    return found


def _find(option: str, name: str) -> Any:
    """Imports a module, from the current folder too, and returns it or what is named in it."""
    module_name, _, path = name.partition(":")
    if not module_name or module_name.startswith("."):
        raise SettingsError(f"{option} {name}: write it as module:object")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.startswith(error.name):
            raise SettingsError(f"{option} {name}: there is no module {error.name!r} (looked in {here} too)") from None
        raise SettingsError(f"{option} {name}: importing it failed: {describe(error)}") from error
    except (Exception, SystemExit) as error:  # a module that exits must not end the command as if it had succeeded
        raise SettingsError(f"{option} {name}: importing it failed: {describe(error)}") from error
    for part in filter(None, path.split(".")):
        if not hasattr(found, part):
            raise SettingsError(f"{option} {name}: {module_name} has no {path!r}")
        found = getattr(found, part)
    return found


def _pipelines(found: Any) -> list[Pipeline[Any]]:
    if isinstance(found, Pipeline):
        return [found]
    if isinstance(found, ModuleType):
        found = vars(found).values()
    elif isinstance(found, str) or not isinstance(found, Iterable):
        return []
    return list({id(item): item for item in found if isinstance(item, Pipeline)}.values())


def _kind(found: Any, wanted: str = "Pipeline") -> str:
    return f"a module without a {wanted}" if isinstance(found, ModuleType) else f"of type {type(found).__name__}"
