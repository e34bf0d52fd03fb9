"""Asks about the tool calls of an agent of Pydantic AI, and checks the arguments that people give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_ai import Agent, DeferredToolRequests, FunctionToolset
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.toolsets import AbstractToolset

from ... import texts
from ...definition.waits.approval import MOST_QUESTIONS
from ...definition.waits.question import Question
from ..decisions import Decision
from ..questions import question

Ask = Callable[[ToolCallPart], Mapping[str, Any]]


def questions(
    agent: Agent[Any, Any], requests: DeferredToolRequests, answered: str, ask: Ask | None,
    wrong: Mapping[str, str] | None = None,
) -> list[Question]:  # fmt: skip
    """Returns a question for each call, as far as a wait may ask them. All answers lead to the status `answered`.

    `ask` gives further parameters of a question. With `wrong`, it is asked before the agent has gone on: it says of
    calls, by their ids, what doesn't fit in the arguments that a person has given before.
    """
    asked: list[Question] = []
    for call in [*requests.approvals, *requests.calls][:MOST_QUESTIONS]:
        arguments = call.args_as_dict()
        approves = call in requests.approvals
        asked.append(
            question(
                agent.name or "", call, arguments if approves else {"arguments": arguments, "result": None},
                options=("approve", "deny") if approves else ("answer", "deny"), answered=answered,
                given=ask(call) if ask else {}, again=wrong is not None,
                problem=(wrong or {}).get(call.tool_call_id),
            )
        )  # fmt: skip
    return asked


def problems(agent: Agent[Any, Any], calls: Sequence[ToolCallPart], decided: Mapping[str, Decision]) -> dict[str, str]:
    """Returns what doesn't fit in the arguments that people have given, by the ids of the calls.

    Only the schemas of function tools are known here. Others check their arguments when they are called.
    """
    found: dict[str, str] = {}
    for call in calls:
        decision = decided.get(call.tool_call_id)
        if decision and decision.edited and (problem := _problem(agent, call.tool_name, decision.arguments)):
            found[call.tool_call_id] = problem
    return found


def _problem(agent: Agent[Any, Any], tool: str, arguments: Any) -> str | None:
    if not isinstance(arguments, dict):
        return "they are not an object"
    found: list[str] = []

    def look(toolset: AbstractToolset[Any]) -> None:
        if isinstance(toolset, FunctionToolset) and tool in toolset.tools:
            try:
                toolset.tools[tool].function_schema.validator.validate_python(arguments)
            except ValidationError as error:
                found.append(texts.explain(error))

    for toolset in agent.toolsets:
        toolset.apply(look)
    return found[0] if found else None
