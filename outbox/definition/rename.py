"""Renames statuses in a deploy: workflows keep their jobs, questions, waits and deadlines, under the new names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..database import statements
from ..errors import DefinitionError
from .pipeline import Pipeline

SQL = statements.load("rename")


def resolve(pipeline: Pipeline[Any]) -> dict[str, str]:
    """Returns the old names of statuses with the names that this version has for them.

    A name may have been changed several times: the code keeps each rename, for databases that have the oldest name.
    Raises DefinitionError if a rename leads nowhere, or names a status that this version has.
    """
    routes, found = pipeline.routes(), dict[str, str]()
    for old in pipeline.renames:
        what = f'pipeline {pipeline.name}: rename("{old}", "{pipeline.renames[old]}")'
        if old in routes:
            raise DefinitionError(
                f"{what}: this version still has the status {old}. To go back to a former name, remove its rename. "
                "To swap two names, deploy twice, with a third name in between"
            )
        now, passed = pipeline.renames[old], {old}
        while now in pipeline.renames and now not in passed:
            passed.add(now)
            now = pipeline.renames[now]
        if now not in routes:
            raise DefinitionError(f"{what}: this version has no status {now}")
        found[old] = now
    return found


def rename(pipeline: str, renamed: Mapping[str, str]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields the statements that rename statuses of a pipeline whose new routes have been written."""
    params = {"pipeline": pipeline, "names": json.dumps(renamed), "olds": list(renamed)}
    for name in (
        "renaming_begins",
        "questions_rename",
        "deadlines_rename",
        "waits_rename",
        "failures_rename",
        "cancellations_rename",
        "workflows_rename",
        "renaming_ends",
    ):
        yield SQL[name], params
