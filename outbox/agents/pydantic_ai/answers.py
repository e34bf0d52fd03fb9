"""Reads what people have decided on the tool calls of an agent. Only rows of the database decide, never the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_ai import DeferredToolResults, ModelMessage, ModelResponse, RetryPromptPart, ToolApproved, ToolDenied
from pydantic_ai.messages import ToolCallPart, ToolReturnPart

from ...definition.outcome import Reject
from ...definition.run import Answer, Run

AGAIN = " (again)"
"""Ends the name of a question asked before the agent has gone on: the decisions of the wait before it still count."""

_LONGEST = 200
"""The longest name, in characters, that is kept as it is."""


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


def pending(history: Sequence[ModelMessage]) -> list[ToolCallPart]:
    """Returns the calls of the last response that have no result yet.

    Raises Reject if two calls of it have one id: a decision on one of them would be one on the other.
    """
    returned: set[str] = set()
    for message in reversed(history):
        if isinstance(message, ModelResponse):
            calls = message.tool_calls
            ids = [call.tool_call_id for call in calls]
            if twice := next((id_ for id_ in ids if ids.count(id_) > 1), None):
                raise Reject(f"two tool calls of one response have the id {twice}")
            return [call for call in calls if call.tool_call_id not in returned]
        returned |= {part.tool_call_id for part in message.parts if isinstance(part, ToolReturnPart | RetryPromptPart)}
    return []


def name_of(call: ToolCallPart) -> str:
    """Returns the name of the question about a call, by which its answer is found. Two calls never have the same."""
    name = f"{call.tool_name} {call.tool_call_id}"
    if len(name) <= _LONGEST and name.count(" ") == 1:
        return name
    hashed = hashlib.sha256(json.dumps([call.tool_name, call.tool_call_id]).encode()).hexdigest()
    return f"{call.tool_name[:64]} {hashed}"


async def decisions(run: Run[Any], calls: Sequence[ToolCallPart]) -> dict[str, Decision]:
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


def results(calls: Sequence[ToolCallPart], decided: Mapping[str, Decision]) -> DeferredToolResults:
    """Returns the decisions as the agent takes them. A call that nobody has approved is denied.

    An approved call has the arguments of the answer, not those of the conversation. Tools find who has decided in
    `ctx.tool_call_metadata`.
    """
    approvals: dict[str, Any] = {}
    external: dict[str, Any] = {}
    told: dict[str, dict[str, Any]] = {}
    for call in calls:
        decision = decided.get(call.tool_call_id, NOT_ASKED)
        told[call.tool_call_id] = {"by": decision.by, "reason": decision.reason}
        if decision.denied is not None:
            approvals[call.tool_call_id] = ToolDenied(decision.denied)
        elif not decision.approved:
            external[call.tool_call_id] = decision.result
        elif isinstance(decision.arguments, dict):
            approvals[call.tool_call_id] = ToolApproved(override_args=decision.arguments)
        else:
            approvals[call.tool_call_id] = ToolDenied("The approved arguments are not an object.")
    return DeferredToolResults(approvals=approvals, calls=external, metadata=told)
