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

    There may be several such names, with commas between them. The current folder is importable, as with `python -m`.
    Raises SettingsError, which says what was found, if one of them has no pipeline, or if two pipelines have the same
    name.
    """
    places: dict[str, tuple[Pipeline[Any], str]] = {}
    for each in filter(None, map(str.strip, (app or "").split(","))):
        found = _find("--app", each)
        pipelines = _pipelines(found, each)
        if not pipelines:
            raise SettingsError(
                f"--app {each} is {_kind(found)}: it must be a Pipeline, several, or a module that has some"
            )
        for pipeline, place in pipelines:
            before, there = places.setdefault(pipeline.name, (pipeline, place))
            if before is not pipeline:
                raise SettingsError(
                    f"{there} and {place} are two pipelines named {pipeline.name!r}: rename one of them"
                )
    if not places:
        raise SettingsError("no application is given: give --app module:object, or set OUTBOX_APP")
    return [pipeline for pipeline, _ in places.values()]


def find_all(name: str, what: str) -> list[Pipeline[Any]]:
    """Returns the pipelines that `module:object` names, or none. `what` is what an error says that it is."""
    return [pipeline for pipeline, _ in _pipelines(_find(what, name), name)]


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


def _pipelines(found: Any, app: str) -> list[tuple[Pipeline[Any], str]]:
    """Returns the pipelines, each with the place where it was found."""
    if isinstance(found, Pipeline):
        return [(found, app)]
    if isinstance(found, ModuleType):
        named = {f"{app}:{name}": item for name, item in vars(found).items()}
    elif isinstance(found, str) or not isinstance(found, Iterable):
        return []
    else:
        named = {f"{app}[{number}]": item for number, item in enumerate(found)}
    return [(item, place) for place, item in named.items() if isinstance(item, Pipeline)]


def _kind(found: Any, wanted: str = "Pipeline") -> str:
    return f"a module without a {wanted}" if isinstance(found, ModuleType) else f"of type {type(found).__name__}"
