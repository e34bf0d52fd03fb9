"""Describes an operation of an agent: its place in a run, and what it is. The next attempt must find the same there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

_LONGEST_ID = 64
"""The longest id of a tool call, in characters, that is a part of a key as it is. Models make shorter ones."""


@dataclass(frozen=True, slots=True)
class Described:
    """An operation: its place in the run `run_id`, what it must be in each attempt (JSON), and a title for people."""

    run_id: str | None
    place: str
    identity: dict[str, Any]
    title: str


def describe(agent: str, operation: DurableOperationId, params: Any) -> Described:
    """Returns what an operation of an agent is."""
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
            place = f"step {context.run_step} {of} {params.name} {_short(context.tool_call_id or '')}"
            identity["tool"] = params.name
        case ToolsetGetToolsId(toolset_id=toolset):
            place = title = f"tools of {toolset}"
        case ToolsetGetInstructionsId(toolset_id=toolset):
            place = title = f"instructions of {toolset}"
        case CapabilityOperationId(capability_id=capability, operation=method):
            place = title = f"{capability}.{method}"
        case _:
            place = title = type(operation).__name__
    return Described(run_id, place, identity, title)


def difference(kept: dict[str, Any], now: dict[str, Any]) -> str:
    """Returns what differs between two identities, in words."""
    for name, value in now.items():
        if (before := kept.get(name)) != value:
            if name == "said":
                return "what is said before it is not the same: another prompt, or other calls"
            return f"its {name} was {_listed(before)}, and is {_listed(value)} now"
    return "it was another kind of operation"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


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


def _short(id_: str) -> str:
    return id_ if len(id_) <= _LONGEST_ID else hashlib.sha256(id_.encode()).hexdigest()[:_LONGEST_ID]
