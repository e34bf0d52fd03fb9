"""Reports how far an agent is, from the events that it streams."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agents import RawResponsesStreamEvent, RunContextWrapper, RunItemStreamEvent, StreamEvent, ToolCallItem
from agents.items import HandoffOutputItem, ToolCallOutputItem

from ..attempt import current


async def report_progress(ctx: RunContextWrapper[object], events: AsyncIterator[StreamEvent]) -> None:
    """Reports by `run.progress` what the agent is at: `event_stream_handler=report_progress`."""
    attempt, steps = current(), _Steps()
    async for event in events:
        text = steps.text(event)
        if attempt is not None and text:
            attempt.run.progress(f"step {steps.number}: {text}")


class _Steps:
    """Knows in which step an event comes: a request, and the calls that its response asks for."""

    def __init__(self) -> None:
        self.number = 1
        self._responded = False
        self._tools: dict[str | None, str | None] = {}

    def text(self, event: StreamEvent) -> str | None:
        """Returns what the agent is at, or None if the event doesn't say so."""
        match event:
            case RawResponsesStreamEvent(data=data):
                if self._responded:
                    self.number += 1
                self._responded = data.type == "response.completed"
                return _begins(data.item) if data.type == "response.output_item.added" else None
            case RunItemStreamEvent(item=ToolCallItem() as item):
                self._tools[item.call_id] = item.tool_name
                return f"calls {item.tool_name}"
            case RunItemStreamEvent(item=ToolCallOutputItem() as item):
                return f"has the result of {self._tools.get(item.call_id, 'a tool')}"
            case RunItemStreamEvent(item=HandoffOutputItem() as item):
                return f"hands over to {item.target_agent.name}"
            case _:
                return None


def _begins(item: object) -> str | None:
    match getattr(item, "type", None):
        case "message":
            return "answers"
        case "reasoning":
            return "thinks"
        case "function_call":
            return f"asks for {getattr(item, 'name', None)}"
        case _:
            return None
