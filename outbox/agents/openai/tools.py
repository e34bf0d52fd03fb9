"""Keeps the tool calls of an agent, and says of a tool how its calls are made and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

from agents import FunctionTool, RunContextWrapper, Tool, ToolInputGuardrail, ToolInputGuardrailData
from agents.agent_tool_state import drop_agent_tool_run_result, get_agent_tool_state_scope
from agents.exceptions import ModelBehaviorError, ToolTimeoutError
from agents.tool import (
    ApplyPatchTool,
    ComputerTool,
    CustomTool,
    LocalShellTool,
    ShellTool,
    default_tool_timeout_error_message,
    invoke_function_tool,
    maybe_invoke_function_tool_failure_error_function,
)
from agents.tool_context import ToolContext
from pydantic_core import from_json, to_jsonable_python

from ...definition.effect import NotDone
from ...definition.outcome import Reject, Retry
from ...errors import DefinitionError, OutboxError
from .. import policy
from ..decisions import Decision, name_of
from ..errors import StillWaits
from ..kept import Described, keep, short, tool_result
from ..policy import NO_POLICY, ToolPolicy
from .place import ToolCallPlace, decided, place, tool_call

OURS = (OutboxError, Reject, Retry, NotDone)
"""What says what becomes of the attempt. The model is never told of it."""

_POLICY = "_outbox_policy"
"""The attribute of a tool that has its policy. The SDK's copies of a tool have it, too."""

_NOT_KEPT = (ComputerTool, LocalShellTool, ShellTool, ApplyPatchTool, CustomTool)
"""Tools that act on this machine, without a function whose result could be kept."""

T = TypeVar("T", bound=FunctionTool)


def tool_policy(kept: Literal[False] | None = None, /, **words: Any) -> Callable[[T], T]:
    """Says how the calls of a tool are made and kept: `@tool_policy(effect=True)` above `@function_tool`.

    `effect`, `on_unknown`, `timeout` and `retry` are those of ToolPolicy. With `tool_policy(False)` the calls are not
    kept: each attempt makes them. Raises DefinitionError for anything else.
    """

    def decorate(tool: T) -> T:
        if not isinstance(tool, FunctionTool):
            raise DefinitionError(
                "tool_policy() is for a tool: put it above @function_tool, or around agent.as_tool(…)"
            )
        if kept is not None and (kept is not False or words):
            raise DefinitionError(f"tool {tool.name}: tool_policy() takes False alone, or words")
        setattr(tool, _POLICY, policy.read({policy.KEY: words if kept is None else False}, tool.name))
        return tool

    return decorate


def kept_tool(tool: Tool, agent: str) -> Tool:
    """Returns a tool whose calls are kept. Raises DefinitionError if they can't be."""
    if isinstance(tool, _NOT_KEPT) and not (isinstance(tool, ShellTool) and tool.executor is None):
        raise DefinitionError(
            f"agent {agent}: calls of {type(tool).__name__} {tool.name!r} can't be kept: use a function_tool"
        )
    if not isinstance(tool, FunctionTool):
        return tool  # it runs at the model's side, and is a part of the response
    found: ToolPolicy | Literal[False] = getattr(tool, _POLICY, NO_POLICY)

    async def invoke(ctx: ToolContext[Any], arguments: str) -> Any:
        call = _Call(tool, found or NO_POLICY, ctx, arguments)
        return await (call.not_kept() if found is False else call.kept())

    same = copy(tool)
    same.on_invoke_tool = invoke
    same.timeout_seconds = None  # it bounds the call, not the keeping
    same.tool_input_guardrails = [_judges_what_is_called(each) for each in tool.tool_input_guardrails or ()]
    if callable(tool.needs_approval):
        same.needs_approval = _asks(tool)
    return same


class _Call:
    """A call of a tool in a run of an agent."""

    def __init__(self, tool: FunctionTool, policy: ToolPolicy, ctx: ToolContext[Any], arguments: str) -> None:
        self._tool = tool
        self._policy = policy
        self._ctx = ctx
        self._decision = _decision(ctx)
        if (approved := _approved(self._decision)) is not None:
            arguments = ctx.tool_arguments = approved
        self._arguments = arguments
        self._raised: list[Exception] = []

    async def plain(self) -> Any:
        """Makes the call. What was approved counts here, too."""
        token = tool_call.set(ToolCallPlace(self._decision))
        try:
            return await self._invoke(self._tool)
        finally:
            tool_call.reset(token)

    async def not_kept(self) -> Any:
        """Makes the call. If it fails, effects beside it end first: the SDK cuts off what is beside a failure."""
        try:
            return await self.plain()
        except Exception:
            if (here := place.get()) is not None:
                await here.attempt.run._others_end()
            raise

    async def kept(self) -> Any:
        """Returns the result that an attempt has kept, or makes the call and keeps its result."""
        here = place.get()
        if here is None:
            return await self.plain()
        agent = here.agent if self._ctx.agent is None else self._ctx.agent.name
        name = self._tool.qualified_name
        self._what = Described(
            agent, here.key(f"call {name} {short(self._ctx.tool_call_id)}"), {"agent": agent, "tool": name},
            title=f"tool {name}",
        )  # fmt: skip
        try:
            kept = await keep(
                here.attempt, self._what, self._make, policy=self._policy, failed=self._failed,
                about=_read(self._arguments),
            )  # fmt: skip
        except StillWaits as waits:
            return waits.result
        if not kept.made and self._ctx.tool_call is not None:
            # It has ended: an agent within it that waited for people, as its state says, doesn't wait any more.
            drop_agent_tool_run_result(self._ctx.tool_call, scope_id=get_agent_tool_state_scope(self._ctx))
        return kept.result

    async def _make(self) -> Any:
        mine = ToolCallPlace(self._decision)
        token, run = tool_call.set(mine), place.set(None)
        try:
            result = await self._invoke(self._raising())
        finally:
            tool_call.reset(token)
            place.reset(run)
        # Of other tools, it is their own affair what becomes of an agent that they have run: they have ended.
        if mine.waits and self._tool._is_agent_tool:
            raise StillWaits(result)
        return tool_result(to_jsonable_python, result, self._what)

    async def _invoke(self, tool: FunctionTool) -> Any:
        return await invoke_function_tool(function_tool=tool, context=self._ctx, arguments=self._arguments)

    def _raising(self) -> FunctionTool:
        """Returns the tool such that its errors are raised: they may be ours, and a call may be tried again."""

        def note(ctx: RunContextWrapper[Any], error: Exception) -> str:
            self._raised.append(error)
            raise error

        same = copy(self._tool)
        same.timeout_behavior = "raise_exception"
        same._use_default_failure_error_function = False
        same._failure_error_function = note
        return same

    async def _failed(self, error: Exception) -> Any:
        """Returns what the model is told of an error, as the SDK does. Raises it if the model isn't told."""
        if isinstance(error, OURS) or (self._policy.effect and not self._refused(error)):
            raise error
        tool, text = self._tool, None
        if isinstance(error, ToolTimeoutError) and tool.timeout_behavior == "error_as_result":
            text = default_tool_timeout_error_message(tool_name=tool.name, timeout_seconds=error.timeout_seconds)
            if tool.timeout_error_function is not None:
                told = tool.timeout_error_function(self._ctx, error)
                text = told if isinstance(told, str) else await told
        elif error in self._raised:
            text = await maybe_invoke_function_tool_failure_error_function(
                function_tool=tool, context=self._ctx, error=error
            )
        if text is None:
            raise error
        return text

    def _refused(self, error: Exception) -> bool:
        """Whether the arguments don't fit, so the function was not called."""
        return isinstance(error, ModelBehaviorError) and str(error).startswith("Invalid JSON input for tool ")


class _Named(NamedTuple):
    tool_name: str
    tool_call_id: str


def _decision(ctx: ToolContext[Any]) -> Decision | None:
    return decided.get({}).get(name_of(_Named(ctx.tool_name, ctx.tool_call_id)))


def _approved(decision: Decision | None) -> str | None:
    """Returns the arguments that a person has approved: those of the answer, not those of the conversation."""
    if decision is None or not decision.approved:
        return None
    return json.dumps(decision.arguments, ensure_ascii=False)


def _judges_what_is_called(guardrail: ToolInputGuardrail[Any]) -> ToolInputGuardrail[Any]:
    """Returns a guardrail that is shown the arguments with which the call is made, after an edit, too."""

    def judge(given: ToolInputGuardrailData) -> Any:
        if (approved := _approved(_decision(given.context))) is not None:
            given.context.tool_arguments = approved
        return guardrail.guardrail_function(given)

    return replace(guardrail, guardrail_function=judge, name=guardrail.get_name())


def _read(arguments: str) -> Any:
    try:
        return from_json(arguments)
    except ValueError:
        return arguments


def _asks(tool: FunctionTool) -> Any:
    """Returns what decides whether a call needs approval, with the SDK's own care: see `FunctionTool.needs_approval`.

    The SDK asks about arguments that validation changes. It looks that up in its own invoker, which isn't there.
    """
    decides: Any = tool.needs_approval

    async def needs_approval(ctx: RunContextWrapper[Any], arguments: dict[str, Any], call_id: str) -> bool:
        prepare = getattr(tool.on_invoke_tool, "prepare_arguments", None)
        prepared = None if prepare is None else prepare(json.dumps(arguments), tool.name)
        if prepared is not None and not prepared.unchanged:
            return True
        needs = decides(ctx, arguments, call_id)
        return bool(needs if isinstance(needs, bool) else await needs)

    return needs_approval
