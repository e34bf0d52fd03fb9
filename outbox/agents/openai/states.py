"""Writes and restores runs that wait for people: the SDK's RunState."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from agents import Agent, RunState

from ...errors import AgentChanged

_CONTEXT = {"context", "context_meta"}
_DECISIONS = {"approvals", "function_tool_approvals", "hosted_mcp_approvals"}


def written(state: RunState[Any]) -> dict[str, Any]:
    """Returns a state as JSON, without the application's context, which JSON may not hold."""
    found: dict[str, Any] = _without(_CONTEXT, state.to_json(context_serializer=lambda _: {}))
    return found


def without_decisions(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a written state without what was decided in it, and in runs within it: only the database's rows count."""
    found: dict[str, Any] = _without(_DECISIONS, state)
    return found


async def restored(agent: Agent[Any], state: dict[str, Any], context: Any) -> RunState[Any]:
    """Returns a state as it was written. Raises AgentChanged if it isn't one of this agent."""
    try:
        return await RunState.from_json(agent, state, context_override=context)
    except Exception as error:  # also RuntimeError: the SDK replaces errors that quote the state
        why = str(error).rstrip(".")
        raise AgentChanged(
            f"agent {agent.name}: the run that waits for people can't go on: {why}. Bring back the agents and tools "
            "that it began with"
        ) from error


async def bind(state: RunState[Any], agent: Agent[Any]) -> None:
    """Makes a state one of another copy of its agents. It stays the same object: the SDK looks there how a run ends."""
    context = None if state._context is None else state._context.context
    vars(state).update(vars(await restored(agent, written(state), context)))


def _without(names: Set[str], state: Any) -> Any:
    if isinstance(state, Mapping):
        found = {key: _without(names, value) for key, value in state.items()}
        if "$schemaVersion" in found and isinstance(found.get("context"), dict):
            own = {key: value for key, value in found["context"].items() if key not in names}
            found["context"] = {"approvals": {}, "context": None, **own}
        return found
    return [_without(names, each) for each in state] if isinstance(state, list) else state
