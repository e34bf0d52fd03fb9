"""Offers a pipeline as a tool: a call starts a workflow, tells its progress, and returns its data when it has ended.

The workflow doesn't depend on the call. One that is given up, or whose client has gone, goes on, and a second call with
the same entity id waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp.shared.tool_name_validation import validate_tool_name
from mcp_types import ToolAnnotations

from ..client import why
from ..client.execute import drive
from ..client.wait import standing
from ..definition.pipeline import Pipeline
from ..errors import NotFound, SettingsError
from ..operations import look
from ..operations.sessions import Conn
from ..texts import shown
from . import results
from .asking import Asking, Unavailable
from .operating import started

WAIT = 45.0
"""Seconds after which a call returns though the workflow goes on. Clients give a call a minute."""

FIRST, LONGEST = 0.05, 1.0
"""Seconds between two looks: at first, and after it was doubled with each look."""

ENTITY = "entity_id"
_ENTITY_SCHEMA = {
    "type": "string",
    "description": "An id of your own for this run. A second call with it starts nothing, and waits for the first run. "
    "By default, each call is a run of its own.",
}


class _AsGiven(FuncMetadata):
    """Passes the arguments of a call on as they are: the pipeline validates them as its data."""

    def validate_arguments(self, arguments_to_validate: dict[str, Any]) -> dict[str, Any]:
        return {"given": arguments_to_validate}


class Running:
    """A pipeline as a tool, in the name `by`."""

    def __init__(self, asking: Asking, name: str, pipeline: Pipeline[Any], by: str, wait: float = WAIT) -> None:
        self._asking, self._name, self._pipeline, self._by, self._wait = asking, name, pipeline, by, wait
        self._schema = _schema(name, pipeline)
        # A model may have such a field.
        self._entity = ENTITY if ENTITY not in self._schema["properties"] else f"_{ENTITY}"

        # A model that ignores what it doesn't know would ignore an argument that is misspelt.
        self._is_closed = not self._schema.get("additionalProperties")

    def tool(self) -> Tool:
        """Returns the tool. Its arguments are the fields of the pipeline's data, and the entity id."""
        said = self._schema.get("description", "")
        return Tool(
            fn=self._run,
            name=self._name,
            title=None,
            description=f"Runs a workflow of the pipeline {self._pipeline.name}, and returns its data when it has "
            f"ended. {said}".strip(),
            parameters={
                **self._schema, "properties": {**self._schema["properties"], self._entity: _ENTITY_SCHEMA},
                "additionalProperties": not self._is_closed,
            },
            fn_metadata=_AsGiven(arg_model=ArgModelBase),
            is_async=True,
            context_kwarg="context",
            annotations=ToolAnnotations(read_only_hint=False, open_world_hint=True),
        )  # fmt: skip

    async def _run(self, given: dict[str, Any], context: Context[Any, Any]) -> str:
        data = dict(given)
        entity = data.pop(self._entity, None)
        if unknown := sorted(data.keys() - self._schema["properties"].keys() if self._is_closed else ()):
            raise ToolError(f"{self._name} has no argument {shown(unknown[0])}")
        if entity is None:
            entity = f"mcp-{uuid4()}"
        try:
            made = await self._asking.make(lambda conn: started(conn, self._pipeline, entity, data, self._by, None))
        except Unavailable as error:
            raise ToolError(f"{error} Call this tool again with the {self._entity} {entity}.") from error
        return await self._ended(
            {"pipeline": self._pipeline.name, self._entity: entity, "created": made.created}, context
        )

    async def _ended(self, run: dict[str, Any], context: Context[Any, Any]) -> str:
        """Waits until the workflow has ended, and returns its data. Raises ToolError if its job is dead.

        A database that doesn't answer meanwhile is asked again.
        """
        until, pause, told = time.monotonic() + self._wait, FIRST, list[_Standing]()
        while True:
            left = until - time.monotonic()
            try:
                now = await self._asking.read(lambda conn: self._standing(conn, run[self._entity]))
                if now.ended:
                    how = "Call show_workflow for it with `at`; for a string, go on with `offset` = `shown`."
                    return await self._asking.look(lambda conn: {**run, **self._result(conn, run[self._entity])}, how)
                why = now.why
            except Unavailable as error:
                now, why = None, str(error)
            if now is not None and now.dead:
                raise ToolError(results.text({"error": "its job is dead", **run, **asdict(now)}))
            if left <= 0:
                how = f"It goes on. Call this tool again with this {self._entity} to wait for it."
                return results.document(
                    {**run, "ended": False, "status": now and now.status, "why": why, "what_now": how}
                )
            if now is not None and now not in told[-1:]:
                told.append(now)
                await context.report_progress(len(told), None, results.text({**run, "status": now.status, "why": why}))
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST)

    def _standing(self, conn: Conn, entity: str) -> _Standing:
        status, ended, dead = drive(conn, standing(self._pipeline.name, entity))
        if status is None:
            raise NotFound(f'the workflow of entity "{entity}" was deleted')
        if ended:
            return _Standing(status, True, False, "It has ended.", None)
        said = drive(conn, why.asked(self._pipeline.name, entity))
        return _Standing(status, False, dead, said.sentence, said.remedy)

    def _result(self, conn: Conn, entity: str) -> dict[str, Any]:
        row = look.find_one(conn, entity, self._pipeline.name)
        return {"ended": True, "status": row["current_status"], "metadata": row["metadata"]}


@dataclass(frozen=True, slots=True)
class _Standing:
    """Where a workflow is. Two are the same if nothing has happened to it in between."""

    status: str
    ended: bool
    dead: bool
    why: str = field(compare=False)
    remedy: str | None = field(compare=False)


def check_names(names: Collection[str], taken: Collection[str]) -> None:
    """Raises SettingsError for a name that no tool may have, or that another tool has."""
    for name in names:
        if not validate_tool_name(name).is_valid:
            problem = "is no name of a tool, which has up to 128 letters, digits, _, - and ."
        elif name in taken:
            problem = "is the name of another tool"
        else:
            continue
        raise SettingsError(f"--tool: {name!r} {problem}. Give it another one: --tool PIPELINE=NAME")


def _schema(name: str, pipeline: Pipeline[Any]) -> dict[str, Any]:
    """Returns the JSON schema of a pipeline's data. Raises SettingsError if it isn't one of an object."""
    schema = pipeline.data_type().json_schema() or {}
    root = schema.get("$ref", "").removeprefix("#/$defs/")
    if root:  # a model that refers to itself
        schema = {**schema["$defs"][root], "$defs": schema["$defs"]}
    if schema.get("type") != "object" or pipeline.is_idle or pipeline.reaction_of:
        raise SettingsError(
            f"--tool {name}: pipeline {pipeline.name} can't be a tool: no workflow starts in it, or its data is not an "
            "object with a JSON schema"
        )
    return {**schema, "properties": schema.get("properties", {})}
