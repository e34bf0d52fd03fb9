"""Finds the tool calls that wait for people, and gives an agent what people have decided on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_ai import DeferredToolResults, ModelMessage, ModelResponse, RetryPromptPart, ToolApproved, ToolDenied
from pydantic_ai.messages import ToolCallPart, ToolReturnPart

from ...definition.outcome import Reject
from ..decisions import NOT_ASKED, Decision, name_of

__all__ = ["name_of", "pending", "results"]


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


def results(calls: Sequence[ToolCallPart], decided: Mapping[str, Decision]) -> DeferredToolResults:
    """Returns the decisions as the agent takes them. A call without an approval is denied.

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
