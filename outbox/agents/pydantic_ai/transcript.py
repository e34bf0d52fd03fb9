"""Defines what `agent_stage` keeps of an agent in the data of a workflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_ai import DeferredToolRequests, ModelMessage, ModelMessagesTypeAdapter

_REQUESTS = TypeAdapter(DeferredToolRequests)


class Transcript(BaseModel):
    """An agent's conversation in a workflow's data: `transcript: Transcript = Transcript()`.

    `messages` are as Pydantic AI writes them. `asked` are the tool calls that people have been asked about; what they
    have answered is in the database only. `requests` and `tokens` are what the workflow has spent. `stopped` says why
    the agent was stopped.

    It is part of the data: who may write that may change the conversation and the counts, but can't approve a call.
    """

    messages: list[Any] = []
    asked: dict[str, Any] | None = None
    requests: int = Field(default=0, ge=0)
    tokens: int = Field(default=0, ge=0)
    stopped: str | None = None

    def history(self) -> list[ModelMessage]:
        """Returns the messages for the agent's next run."""
        return ModelMessagesTypeAdapter.validate_python(self.messages)

    def made_elsewhere(self) -> set[str]:
        """Returns the ids of those calls in `asked` that the agent doesn't make itself."""
        return (
            set() if self.asked is None else {each.tool_call_id for each in _REQUESTS.validate_python(self.asked).calls}
        )


def messages_as_json(messages: Sequence[ModelMessage]) -> list[Any]:
    """Returns messages as a transcript keeps them."""
    written: list[Any] = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
    return written


def calls_as_json(requests: DeferredToolRequests) -> dict[str, Any]:
    """Returns tool calls that wait for people as a transcript keeps them."""
    written: dict[str, Any] = _REQUESTS.dump_python(requests, mode="json")
    return written
