"""Makes tools from functions: what they are for is their docstring, and arguments that they don't have are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic import ConfigDict, Field

from ..checks import MAX_NAME, MAX_QUESTION
from ..documents import MAX_ENTITY_ID

Entity = Annotated[str, Field(max_length=MAX_ENTITY_ID, description="The id of the entity that the workflow is of.")]
OfPipeline = Annotated[
    str | None, Field(max_length=MAX_NAME, description="The pipeline. Needed if the entity is in several.")
]
OnlyPipeline = Annotated[str | None, Field(max_length=MAX_NAME, description="Only of this pipeline.")]
Reason = Annotated[str | None, Field(max_length=MAX_QUESTION, description="Why. It is kept in the history.")]
At = Annotated[
    str | None, Field(max_length=2_000, description="Reads only the part at this JSON pointer, as `cut` lists it.")
]
Offset = Annotated[int, Field(ge=0, description="With `at`: the character at which to begin.")]

REST = "Call this tool again with `at`; for a string, go on with `offset` = `shown`."


def looks(function: Callable[..., Any]) -> Tool:
    """Returns a tool that changes nothing."""
    return _made(function, ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False))


def changes(function: Callable[..., Any], *, repeatable: bool = True) -> Tool:
    """Returns a tool that changes something. `repeatable`: the same call a second time has no effect."""
    return _made(
        function,
        ToolAnnotations(
            read_only_hint=False, destructive_hint=True, idempotent_hint=repeatable, open_world_hint=False
        ),
    )  # fmt: skip


def _made(function: Callable[..., Any], annotations: ToolAnnotations) -> Tool:
    said = " ".join((function.__doc__ or "").split())
    made = Tool.from_function(function, description=said, annotations=annotations, structured_output=False)
    # The SDK ignores arguments that it doesn't know: a list with a filter that is misspelt would be a list of all.
    arguments = made.fn_metadata.arg_model
    made.fn_metadata.arg_model = type(
        arguments.__name__, (arguments,), {"model_config": ConfigDict(extra="forbid"), "__module__": __name__}
    )
    made.parameters = made.fn_metadata.arg_model.model_json_schema(by_alias=True)
    return made
