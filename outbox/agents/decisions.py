"""Reads what people have decided on the tool calls of an agent. Only rows of the database decide, never the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..definition.run import Answer, Run

AGAIN = " (again)"
"""Ends the name of a question asked before the agent has gone on: the decisions of the wait before it still count."""

_LONGEST = 200
"""The longest name, in characters, that is kept as it is."""


class ToolCall(Protocol):
    """A tool call of a model."""

    @property
    def tool_name(self) -> str: ...

    @property
    def tool_call_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person has decided on a call. Unless it is `denied`, with a reason, it is made or has its `result`."""

    by: str | None = None
    reason: str | None = None
    denied: str | None = None
    approved: bool = False
    arguments: Any = None
    edited: bool = False
    result: Any = None


NOT_ASKED = Decision(denied="Nobody has approved this call.")


def name_of(call: ToolCall) -> str:
    """Returns the name of the question about a call, by which its answer is found. Two calls never have the same."""
    name = f"{call.tool_name} {call.tool_call_id}"
    if len(name) <= _LONGEST and name.count(" ") == 1:
        return name
    hashed = hashlib.sha256(json.dumps([call.tool_name, call.tool_call_id]).encode()).hexdigest()
    return f"{call.tool_name[:64]} {hashed}"


async def decisions(run: Run[Any], calls: Sequence[ToolCall]) -> dict[str, Decision]:
    """Returns what people have decided on those of the calls that this stage has asked about, by the ids of the calls.

    It must have asked in the wait directly before this status: an answer counts once.
    """
    found: dict[str, Answer] = {}
    back, more = 0, bool(calls)
    while more:
        answers = {answer.name: answer for answer in await run._answers(back) if answer.name is not None}
        found = {**{name.removesuffix(AGAIN): answer for name, answer in answers.items()}, **found}
        back, more = back + 1, any(name.endswith(AGAIN) for name in answers)
    return {call.tool_call_id: _decision(found[name_of(call)]) for call in calls if name_of(call) in found}


def _decision(answer: Answer) -> Decision:
    if answer.ended == "withdrawn":
        return Decision(denied="The question was withdrawn.")
    if answer.ended == "deadline":
        return Decision(denied="Nobody has decided in time.")
    match answer.decision:
        case "approve":
            return Decision(answer.by, answer.reason, approved=True, arguments=answer.about, edited=answer.edited)
        case "answer":
            result = answer.about.get("result") if isinstance(answer.about, Mapping) else answer.about
            return Decision(answer.by, answer.reason, result=answer.reason if result is None else result)
        case _:
            denied = answer.reason or f"{answer.by} has decided: {answer.decision or 'no'}."
            return Decision(answer.by, answer.reason, denied)
