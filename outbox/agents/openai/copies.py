"""Copies agents for a run in which their requests and tool calls are kept. The agents themselves stay as they are."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from copy import copy
from typing import Any

from agents import Agent, FunctionTool, Handoff, Model, RunContextWrapper, Tool
from agents.sandbox import SandboxAgent

from ...errors import DefinitionError
from .model import kept_model
from .tools import kept_tool

_ORIGINAL = "_outbox_original"
"""The attribute of a copy that has its original: an agent of a result may be run again."""


class Copies:
    """The copies of the agents of one run. Each agent has one, also if agents hand off to each other in a circle."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Agent[Any], Agent[Any]]] = {}

    def of(self, agent: Agent[Any]) -> Agent[Any]:
        """Returns the copy of an agent. Raises DefinitionError if the calls of one of its tools can't be kept."""
        original: Agent[Any] = getattr(agent, _ORIGINAL, agent)
        if id(original) in self._made:
            return self._made[id(original)][1]
        if isinstance(original, SandboxAgent):
            raise DefinitionError(
                f"agent {original.name}: what a SandboxAgent does in its sandbox can't be kept: use an Agent"
            )
        same = copy(original)
        self._made[id(original)] = original, same
        setattr(same, _ORIGINAL, original)
        if isinstance(original.model, Model):
            same.model = kept_model(original.model)
        same.tools = [kept_tool(tool, original.name) for tool in original.tools]
        same.handoffs = [self._handoff(each) for each in original.handoffs]

        async def get_mcp_tools(run_context: RunContextWrapper[Any]) -> list[Tool]:
            return [kept_tool(tool, original.name) for tool in await original.get_mcp_tools(run_context)]

        if original.mcp_servers:
            same.get_mcp_tools = get_mcp_tools  # type: ignore[method-assign]
        return same

    def _handoff(self, handoff: Agent[Any] | Handoff[Any, Any]) -> Agent[Any] | Handoff[Any, Any]:
        if isinstance(handoff, Agent):
            return self.of(handoff)

        async def invoke(ctx: RunContextWrapper[Any], arguments: str) -> Agent[Any]:
            return self.of(await handoff.on_invoke_handoff(ctx, arguments))

        same = copy(handoff)
        same.on_invoke_handoff = invoke
        if (target := _target(handoff)) is not None:
            same._agent_ref = weakref.ref(self.of(target))
        return same


def agents_of(agent: Agent[Any], *, tools: bool = False) -> Iterator[Agent[Any]]:
    """Yields an agent and those that it may hand off to, with those that are `tools` of them if it is asked for."""
    seen: dict[int, Agent[Any]] = {}
    found = [agent]
    while found:
        each = found.pop(0)
        if id(each) not in seen:
            seen[id(each)] = each
            yield each
            targets = (other if isinstance(other, Agent) else _target(other) for other in each.handoffs)
            found.extend(target for target in targets if target is not None)
            if tools:
                found.extend(inner for tool in each.tools if (inner := getattr(tool, "_agent_instance", None)))


def names_twice(agent: Agent[Any]) -> list[str]:
    """Returns the names that several of the agents have to which this one may hand off, or which are its tools."""
    names = Counter(each.name for each in agents_of(agent, tools=True))
    return [name for name, count in names.items() if count > 1]


def _target(handoff: Handoff[Any, Any]) -> Agent[Any] | None:
    target = None if handoff._agent_ref is None else handoff._agent_ref()
    return target if isinstance(target, Agent) else None


def function_tool_of(tools: list[Tool], name: str | None) -> FunctionTool | None:
    """Returns the function tool of a name, which has the namespace before it if there is one."""
    return next((tool for tool in tools if isinstance(tool, FunctionTool) and tool.qualified_name == name), None)
