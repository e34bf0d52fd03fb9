"""Reports how far an agent is, from the events that it streams."""

from __future__ import annotations

from collections.abc import AsyncIterable

from pydantic_ai import AgentStreamEvent, FunctionToolCallEvent, FunctionToolResultEvent, PartStartEvent, RunContext
from pydantic_ai.messages import TextPart, ThinkingPart, ToolCallPart

from ..attempt import current


async def report_progress(ctx: RunContext[object], events: AsyncIterable[AgentStreamEvent]) -> None:
    """Reports by `run.progress` what the agent is at: `OutboxDurability(event_stream_handler=report_progress)`."""
    attempt = current()
    async for event in events:
        if attempt is not None and (text := _text(event)):
            attempt.run.progress(f"step {ctx.run_step}: {text}")


def _text(event: AgentStreamEvent) -> str | None:
    match event:
        case PartStartEvent(part=TextPart()):
            return "answers"
        case PartStartEvent(part=ThinkingPart()):
            return "thinks"
        case PartStartEvent(part=ToolCallPart() as part):
            return f"asks for {part.tool_name}"
        case FunctionToolCallEvent():
            return f"calls {event.part.tool_name}"
        case FunctionToolResultEvent():
            return f"has the result of {event.part.tool_name}"
        case _:
            return None
