"""Describes an operation of an agent: its place in a run, and what it is. The next attempt must find the same there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic_ai import ModelMessage, RunContext
from pydantic_ai.durable_exec import (
    CapabilityOperationId,
    DurableOperationId,
    ModelRequestId,
    ToolsetCallToolId,
    ToolsetGetInstructionsId,
    ToolsetGetToolsId,
    ToolsetValidateToolArgumentsId,
)
from pydantic_ai.messages import UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_core import to_json

from ..attempt import Attempt
from ..kept import Described, short


def describe(agent: str, attempt: Attempt, operation: DurableOperationId, params: Any) -> Described:
    """Returns what an operation of an agent is in an attempt, and its key there."""
    context: RunContext[Any] | None = getattr(params, "run_context", None) or getattr(params, "ctx", None)
    run_id = None if context is None else context.run_id
    identity: dict[str, Any] = {"agent": agent}
    match operation:
        case ModelRequestId():
            place = title = "model request"
            identity |= {"tools": _tools(params.model_request_parameters), "said": _said(params.messages)}
        case ToolsetCallToolId() | ToolsetValidateToolArgumentsId():
            assert context is not None
            title = f"tool {params.name}"
            of = "call" if isinstance(operation, ToolsetCallToolId) else "check"
            place = f"step {context.run_step} {of} {params.name} {short(context.tool_call_id or '')}"
            identity["tool"] = params.name
        case ToolsetGetToolsId(toolset_id=toolset):
            place = title = f"tools of {toolset}"
        case ToolsetGetInstructionsId(toolset_id=toolset):
            place = title = f"instructions of {toolset}"
        case CapabilityOperationId(capability_id=capability, operation=method):
            place = title = f"{capability}.{method}"
        case _:
            place = title = type(operation).__name__
    return Described(agent, attempt.key(run_id, place), identity, title)


def _tools(parameters: ModelRequestParameters) -> list[str]:
    return sorted(tool.name for tool in (*parameters.function_tools, *parameters.output_tools))


def _said(messages: Sequence[ModelMessage]) -> str:
    """Returns a hash of what leads to a request, without times, ids of runs, instructions, and what was kept itself."""
    hashed = hashlib.sha256()
    for part in _parts(messages):
        hashed.update(to_json(part))
    return hashed.hexdigest()[:16]


def _parts(messages: Sequence[ModelMessage]) -> Iterator[list[Any]]:
    for message in messages:
        for part in message.parts:
            said = [message.kind, part.part_kind, getattr(part, "tool_name", None), getattr(part, "tool_call_id", None)]
            if isinstance(part, UserPromptPart):
                said.append(part.content)
            yield said
