"""Asks people about the tool calls that an agent may not make by itself, and reads what they have decided."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, FunctionToolset, ToolApproved, ToolDenied
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.toolsets import AbstractToolset

from ... import texts
from ...checks import MAX_NAME
from ...definition.run import Answer
from ...definition.waits.question import Question

Ask = Callable[[ToolCallPart], Mapping[str, Any]]

_SHOWN = 1_000
"""How many characters of a call's arguments the question itself shows. All of them are in `about`."""


def questions(
    agent: Agent[Any, Any], requests: DeferredToolRequests, settled: Mapping[str, Any], wrong: Mapping[str, str],
    answered: str, ask: Ask | None,
) -> list[Question]:  # fmt: skip
    """Returns a question for each call that isn't settled. All answers lead to the status `answered`.

    `wrong` says of calls, by their ids, what doesn't fit in the arguments that a person has given before. `ask` gives
    further parameters of a question.
    """
    asked: list[Question] = []
    for call in _calls(requests):
        if call.tool_call_id in settled:
            continue
        arguments = call.args_as_dict()
        approves = requests.kind(call.tool_call_id) == "approval"
        text = f"{agent.name}: {call.tool_name} {json.dumps(arguments, ensure_ascii=False)[:_SHOWN]}"
        if problem := wrong.get(call.tool_call_id):
            text = f"{text}\nThe arguments given before don't fit: {problem[:_SHOWN]}"
        given: dict[str, Any] = {
            "question": text,
            "name": name_of(call),
            "options": dict.fromkeys(("approve", "deny") if approves else ("answer", "deny"), answered),
            "about": arguments if approves else {"arguments": arguments, "result": None},
        }
        asked.append(Question(**{**given, **(ask(call) if ask else {})}))
    return asked


def name_of(call: ToolCallPart) -> str:
    """Returns the name of the question about a call, by which its answer is found."""
    return f"{call.tool_name} {call.tool_call_id}"[:MAX_NAME]


def settle(requests: DeferredToolRequests, answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns the decisions of people, as JSON, by the ids of the calls. A call that nobody has approved is denied."""
    by_name = {answer.name: answer for answer in answers}
    return {
        call.tool_call_id: _decision(by_name.get(name_of(call)), approves=call in requests.approvals)
        for call in _calls(requests)
    }


def _decision(answer: Answer | None, *, approves: bool) -> dict[str, Any]:
    if answer is None or answer.ended == "withdrawn":
        return {"denied": "The question was withdrawn."}
    if answer.ended == "deadline":
        return {"denied": "Nobody has decided in time."}
    told = {"by": answer.by, "reason": answer.reason}
    if approves and answer.decision == "approve":
        return {**told, "arguments": answer.about if answer.edited else None}
    if not approves and answer.decision == "answer":
        result = answer.about.get("result") if isinstance(answer.about, Mapping) else answer.about
        return {**told, "result": answer.reason if result is None else result}
    return {**told, "denied": answer.reason or f"{answer.by} has decided: {answer.decision or 'no'}."}


def problems(agent: Agent[Any, Any], requests: DeferredToolRequests, settled: Mapping[str, Any]) -> dict[str, str]:
    """Returns what doesn't fit in the arguments that people have given, by the ids of the calls.

    Only the schemas of function tools are known here. Others check their arguments when they are called.
    """
    found: dict[str, str] = {}
    for call in requests.approvals:
        arguments = settled.get(call.tool_call_id, {}).get("arguments")
        if arguments is not None and (problem := _problem(agent, call.tool_name, arguments)):
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


def results(requests: DeferredToolRequests, settled: Mapping[str, Any]) -> DeferredToolResults:
    """Returns the decisions as the agent takes them. Tools find who has decided in `ctx.tool_call_metadata`."""
    approvals: dict[str, Any] = {}
    calls: dict[str, Any] = {}
    for call in requests.approvals:
        decision = settled[call.tool_call_id]
        denied = decision.get("denied")
        approvals[call.tool_call_id] = (
            ToolApproved(override_args=decision["arguments"]) if denied is None else ToolDenied(denied)
        )
    for call in requests.calls:
        decision = settled[call.tool_call_id]
        denied = decision.get("denied")
        calls[call.tool_call_id] = decision["result"] if denied is None else ToolFailed(denied)
    told = {id_: {"by": each.get("by"), "reason": each.get("reason")} for id_, each in settled.items()}
    return requests.build_results(approvals=approvals, calls=calls, metadata=told)


def _calls(requests: DeferredToolRequests) -> list[ToolCallPart]:
    return [*requests.approvals, *requests.calls]
