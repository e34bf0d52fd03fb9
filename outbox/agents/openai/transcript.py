"""Defines what `agent_stage` keeps of an agent in the data of a workflow."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Transcript(BaseModel):
    """An agent's conversation in a workflow's data: `transcript: Transcript = Transcript()`.

    `messages` are items as the OpenAI Agents SDK gives them to a model, and `agent` is the name of the agent that had
    the last word. While people are asked, `state` is the run that waits, as `RunState.to_json` writes it, and has the
    messages; what people have answered is in the database only. `requests` and `tokens` are what the workflow has
    spent. `stopped` says why the agent was stopped.

    It is part of the data: who may write that may change the conversation and the counts, but can't approve a call.
    """

    messages: list[Any] = []
    agent: str | None = None
    state: dict[str, Any] | None = None
    requests: int = Field(default=0, ge=0)
    tokens: int = Field(default=0, ge=0)
    stopped: str | None = None
