"""The same agents in Pydantic AI and in the OpenAI Agents SDK, for tests of what both promise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import agents
import psycopg
import pydantic_ai
import pytest
from agents import function_tool
from pydantic import BaseModel

from kit import models, openai_models
from outbox.agents import openai as of_openai
from outbox.agents import pydantic_ai as of_pydantic_ai

Tool = Callable[..., Awaitable[str]]


class Framework(NamedTuple):
    """`supporter` makes an agent with the tools `refund`, which needs approval and gets who has approved, and `look_up`.

    `payer` makes one that calls the tool `pay`, which has an effect, and `paid` runs it and returns what that has
    returned. `add_tool` adds the tool `new`, whose calls are kept or not. `case` is the data of a workflow, with a transcript. `returned`, `prompts` and `waits` read that: what
    tools have returned, what users have said, and what is kept while people are asked.
    """

    name: str
    call: Callable[..., Any]
    case: type[Any]
    agent_stage: Callable[..., Any]
    budget: type[Any]
    supporter: Callable[..., Any]
    payer: Callable[..., Any]
    paid: Callable[[Any], Awaitable[str]]
    add_tool: Callable[..., None]
    returned: Callable[[Any], dict[str, Any]]
    prompts: Callable[[Any], list[Any]]
    waits: Callable[[Any], Any]


class PydanticCase(BaseModel):
    prompt: str = "refund me"
    answer: str | None = None
    transcript: of_pydantic_ai.Transcript = of_pydantic_ai.Transcript()


class OpenAICase(BaseModel):
    prompt: str = "refund me"
    answer: str | None = None
    transcript: of_openai.Transcript = of_openai.Transcript()


def _pydantic(name: str, answers: tuple[Any, ...]) -> pydantic_ai.Agent[None, Any]:
    durability: Any = of_pydantic_ai.OutboxDurability()
    return pydantic_ai.Agent(models.script(*answers), name=name, capabilities=[durability])


def _pydantic_supporter(refund: Callable[[int, Any], str], look_up: Tool, *answers: Any) -> Any:
    agent = _pydantic("support", answers)

    @agent.tool(name="refund", requires_approval=True)
    async def refunded(ctx: pydantic_ai.RunContext[None], cents: int) -> str:
        return refund(cents, (ctx.tool_call_metadata or {}).get("by"))

    agent.tool_plain(look_up)
    return agent


def _openai_supporter(refund: Callable[[int, Any], str], look_up: Tool, *answers: Any) -> Any:
    @function_tool(name_override="refund", needs_approval=True)
    async def refunded(cents: int) -> str:
        decided = of_openai.decision()
        return refund(cents, None if decided is None else decided.by)

    tools = [refunded, function_tool(look_up)]
    return agents.Agent[Any](name="support", model=openai_models.Script(*answers), tools=[*tools])


def _pydantic_payer(pay: Tool, *answers: Any, approval: bool = False, **policy: Any) -> Any:
    agent = _pydantic("payer", answers)
    agent.tool_plain(pay, name="pay", requires_approval=approval, metadata={"outbox": {"effect": True, **policy}})
    return agent


def _openai_payer(pay: Tool, *answers: Any, approval: bool = False, **policy: Any) -> Any:
    tool = function_tool(pay, name_override="pay", needs_approval=approval)
    kept = of_openai.tool_policy(effect=True, **policy)(tool)
    return agents.Agent[Any](name="payer", model=openai_models.Script(*answers), tools=[kept])


async def _pydantic_paid(agent: Any) -> str:
    return str(models.returned((await agent.run("go")).all_messages())["c1"])


async def _openai_paid(agent: Any) -> str:
    result = await of_openai.OutboxRunner.run(agent, "go")
    return str(openai_models.returned(result.to_input_list())["c1"])


def _pydantic_add(agent: Any, tool: Callable[[], Any], kept: bool = True) -> None:
    agent.tool_plain(tool, name="new", metadata=None if kept else {"outbox": False})


def _openai_add(agent: Any, tool: Callable[[], Any], kept: bool = True) -> None:
    made = function_tool(
        tool, name_override="new", failure_error_function=None
    )  # else the SDK tells the model of errors
    agent.tools.append(made if kept else of_openai.tool_policy(False)(made))


def _pydantic_prompts(transcript: Any) -> list[Any]:
    parts = [part for message in transcript.history() for part in message.parts]
    return [part.content for part in parts if part.part_kind == "user-prompt"]


PYDANTIC_AI = Framework(
    "pydantic_ai", models.call, PydanticCase, of_pydantic_ai.agent_stage, of_pydantic_ai.Budget, _pydantic_supporter,
    _pydantic_payer, _pydantic_paid, _pydantic_add,
    lambda transcript: models.returned(transcript.history()), _pydantic_prompts, lambda transcript: transcript.asked,
)  # fmt: skip

OPENAI = Framework(
    "openai", openai_models.call, OpenAICase, of_openai.agent_stage, of_openai.Budget, _openai_supporter,
    _openai_payer, _openai_paid, _openai_add,
    lambda transcript: openai_models.returned(transcript.messages),
    lambda transcript: [each["content"] for each in transcript.messages if each.get("role") == "user"],
    lambda transcript: transcript.state,
)  # fmt: skip

each_framework = pytest.mark.parametrize("of", [PYDANTIC_AI, OPENAI], ids=["pydantic_ai", "openai"])
"""Runs a test with each framework, as `of`."""


def require_approvals(conn: psycopg.Connection[Any], refunds: Iterable[Any]) -> None:
    """Requires that each refund, `(cents, by)`, was approved in the database: once, and with these arguments."""
    approved = conn.execute(
        "SELECT coalesce(a.edited, a.data) -> 'cents', a.decided_by FROM outbox.approvals AS a "
        "WHERE a.decision = 'approve' AND a.ended = 'decided'"
    ).fetchall()
    for each in refunds:
        if isinstance(each, tuple):
            approved.remove(each)
