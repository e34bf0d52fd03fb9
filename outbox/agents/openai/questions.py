"""Asks about the tool calls with which a run waits, and gives the run what people have decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema
from agents import RunContextWrapper, RunState, ToolApprovalItem
from pydantic_core import from_json

from ...definition.outcome import Reject
from ...definition.waits.approval import MOST_QUESTIONS
from ...definition.waits.question import Question
from ..decisions import NOT_ASKED, Decision, name_of
from ..questions import question
from .copies import function_tool_of

Ask = Callable[[ToolApprovalItem], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Pending:
    """A tool call that waits for people. `arguments` are JSON if it is one of a function, else all of the call."""

    item: ToolApprovalItem
    tool_name: str
    tool_call_id: str
    arguments: Any

    @property
    def of_function(self) -> bool:
        return bool(_part(self.item, "type") == "function_call")


def pending(interruptions: Iterable[ToolApprovalItem]) -> list[Pending]:
    """Returns the calls that wait for people.

    Raises Reject if two calls have one id: a decision on one of them would be one on the other.
    """
    calls = [
        Pending(item, item.tool_name or "", str(_part(item, "call_id") or _part(item, "id")), _arguments(item))
        for item in interruptions
    ]
    ids = [call.tool_call_id for call in calls]
    if twice := next((id_ for id_ in ids if ids.count(id_) > 1), None):
        raise Reject(f"two tool calls that wait for people have the id {twice}")
    return calls


def questions(
    calls: Sequence[Pending], answered: str, ask: Ask | None, wrong: Mapping[str, str] | None = None
) -> list[Question]:
    """Returns a question for each call, as far as a wait may ask them. All answers lead to the status `answered`.

    `ask` gives further parameters of a question. With `wrong`, it is asked before the agent has gone on: it says of
    calls, by their ids, what doesn't fit in the arguments that a person has given before.
    """
    return [
        question(
            call.item.agent.name, call, call.arguments, options=("approve", "deny"), answered=answered,
            given=ask(call.item) if ask else {}, again=wrong is not None, problem=(wrong or {}).get(call.tool_call_id),
        )
        for call in calls[:MOST_QUESTIONS]
    ]  # fmt: skip


async def problems(
    calls: Sequence[Pending], decided: Mapping[str, Decision], context: RunContextWrapper[Any]
) -> dict[str, str]:
    """Returns what doesn't fit in the arguments that people have given, by the ids of the calls."""
    found: dict[str, str] = {}
    for call in calls:
        decision = decided.get(call.tool_call_id)
        if decision and decision.edited and (problem := await _problem(call, decision.arguments, context)):
            found[call.tool_call_id] = problem
    return found


async def _problem(call: Pending, arguments: Any, context: RunContextWrapper[Any]) -> str | None:
    if not call.of_function:
        return "only the arguments of a function can be changed"
    if not isinstance(arguments, dict):
        return "they are not an object"
    tool = function_tool_of(await call.item.agent.get_all_tools(context), call.item.qualified_name)
    if tool is None:
        return None
    error = jsonschema.Draft202012Validator(tool.params_json_schema).iter_errors(arguments)
    first = next(iter(error), None)
    return None if first is None else f"{'.'.join(map(str, first.absolute_path)) or 'they'}: {first.message}"


def decide(state: RunState[Any], calls: Sequence[Pending], decided: Mapping[str, Decision]) -> dict[str, Decision]:
    """Approves and rejects the calls as people have decided. Returns what was decided, by the names of the questions.

    A call without an approval is rejected.
    """
    found: dict[str, Decision] = {}
    for call in calls:
        decision = decided.get(call.tool_call_id, NOT_ASKED)
        if decision.approved and call.of_function and not isinstance(decision.arguments, dict):
            decision = Decision(decision.by, decision.reason, denied="The approved arguments are not an object.")
        if decision.approved:
            state.approve(call.item)
            if call.of_function:
                found[name_of(call)] = decision
        else:
            state.reject(call.item, rejection_message=decision.denied)
    return found


def _part(item: ToolApprovalItem, name: str) -> Any:
    raw: Any = item.raw_item
    return raw.get(name) if isinstance(raw, Mapping) else getattr(raw, name, None)


def _arguments(item: ToolApprovalItem) -> Any:
    raw: Any = item.raw_item
    if isinstance(given := _part(item, "arguments"), str):
        try:
            return from_json(given)
        except ValueError:
            return given
    return dict(raw) if isinstance(raw, Mapping) else raw.model_dump(mode="json", exclude_unset=True)
