"""Knows where in a handler something happens: in which run of an agent, and in which of its tool calls."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..attempt import Attempt
from ..decisions import Decision


@dataclass(slots=True)
class Place:
    """A run of an agent in an attempt. `turn` counts the responses that it has got.

    `conversation` is a list that the run extends as it goes on, so that it can be read if the run fails.
    """

    attempt: Attempt
    run_id: str
    agent: str
    turn: int = 0
    measured: tuple[int, int] = (0, 0)
    conversation: list[Any] | None = None

    def key(self, what: str) -> str:
        """Returns the key of the only `what` in this turn."""
        return self.attempt.only_key(self.run_id, f"turn {self.turn + 1} {what}")


@dataclass(slots=True)
class ToolCallPlace:
    """A tool call. `waits` says that an agent within it waits for people, so the call has not ended."""

    decision: Decision | None = None
    waits: bool = field(default=False)


place: ContextVar[Place | None] = ContextVar("outbox_agents_openai_place", default=None)
tool_call: ContextVar[ToolCallPlace | None] = ContextVar("outbox_agents_openai_tool_call", default=None)
conversation: ContextVar[list[Any] | None] = ContextVar("outbox_agents_openai_conversation", default=None)
decided: ContextVar[dict[str, Decision]] = ContextVar("outbox_agents_openai_decided")
"""What people have decided on the calls with which the agent goes on, by the names of the questions."""


def decision() -> Decision | None:
    """Returns who has approved the tool call that runs here, and why. None if it needed no approval."""
    call = tool_call.get()
    return None if call is None else call.decision
