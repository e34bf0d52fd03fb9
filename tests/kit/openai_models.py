"""Models of the OpenAI Agents SDK for tests: they say what a test has written, without a network."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from agents import Model, ModelResponse, Usage, set_tracing_disabled
from agents.items import TResponseStreamEvent
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseUsage,
)
from pydantic import BaseModel

Answer = str | Sequence[ResponseFunctionToolCall | ResponseOutputMessage]

set_tracing_disabled(True)


def call(tool: str, id_: str, **arguments: Any) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(type="function_call", name=tool, call_id=id_, arguments=json.dumps(arguments))


def text(said: str) -> ResponseOutputMessage:
    content = [ResponseOutputText(type="output_text", text=said, annotations=[])]
    return ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=list(content))


def response(answer: Answer) -> ModelResponse:
    output: Any = [text(answer)] if isinstance(answer, str) else list(answer)
    usage = Usage(requests=1, input_tokens=30, output_tokens=20, total_tokens=50)
    return ModelResponse(output=output, usage=usage, response_id=None)


def turn_of(items: Any) -> int:
    """Returns how many responses a conversation has: a response is followed by results, or by a user."""
    said = [isinstance(item, dict) and _by_model(item) for item in ([] if isinstance(items, str) else items)]
    return sum(one and not before for before, one in zip([False, *said], said, strict=False))


def _by_model(item: dict[str, Any]) -> bool:
    return item.get("type") in ("function_call", "reasoning") or item.get("role") == "assistant"


class Script(Model):
    """A model whose n-th response in a conversation is the n-th answer: a text, or calls of tools.

    `said` is told of each request, by its number from 1.
    """

    def __init__(self, *answers: Answer, said: Callable[[int], None] = lambda number: None) -> None:
        self.answers = answers
        self.said = said
        self.inputs: list[Any] = []

    async def get_response(self, system_instructions: Any, input: Any, *args: Any, **kwargs: Any) -> ModelResponse:
        self.inputs.append(input)
        number = turn_of(input)
        self.said(number + 1)
        return response(self.answers[number])

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        made = await self.get_response(*args, **kwargs)
        for event in streamed(made):
            yield event


def streamed(made: ModelResponse) -> Iterator[TResponseStreamEvent]:
    """Yields the events of a response: each item when it begins and when it is done, and the text word by word."""
    for index, item in enumerate(made.output):
        yield _event(ResponseOutputItemAddedEvent, "output_item.added", item=item, output_index=index)
        if isinstance(item, ResponseOutputMessage) and isinstance(item.content[0], ResponseOutputText):
            for word in re.findall(r"\S+\s*", item.content[0].text):
                yield _event(ResponseTextDeltaEvent, "output_text.delta", delta=word, output_index=index)
        yield _event(ResponseOutputItemDoneEvent, "output_item.done", item=item, output_index=index)
    usage = ResponseUsage.model_construct(
        **{name: getattr(made.usage, name) for name in ResponseUsage.model_fields}  # as the SDK counts them
    )
    response = Response.model_construct(id="r", object="response", status="completed", output=made.output, usage=usage)
    yield _event(ResponseCompletedEvent, "completed", response=response)


def _event(kind: type[BaseModel], name: str, **fields: Any) -> Any:
    return kind.model_construct(type=f"response.{name}", sequence_number=0, **fields)


def returned(items: list[Any]) -> dict[str, Any]:
    """Returns what tools have returned in a conversation, by the ids of their calls."""
    return {item["call_id"]: item["output"] for item in items if item.get("type") == "function_call_output"}
