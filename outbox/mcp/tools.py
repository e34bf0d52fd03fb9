"""Makes tools from functions: what they are for is their docstring, and arguments that they don't have are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
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


class _AsSaid(FuncMetadata):
    """Reads an argument that is JSON in a string only if it is an object or a list, and a text was not asked for.

    The SDK reads "null" as no argument: a list with this filter would be a list of all.
    """

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        fields = self.arg_model.model_fields
        texts = {name for name, field in fields.items() if field.annotation == (str | None)}
        parsed = super().pre_parse_json(data)
        return {
            name: value if isinstance(value, dict | list) and name not in texts else data[name]
            for name, value in parsed.items()
        }


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
    made.fn_metadata = _AsSaid(**{name: getattr(made.fn_metadata, name) for name in FuncMetadata.model_fields})
    made.parameters = made.fn_metadata.arg_model.model_json_schema(by_alias=True)
    return made
