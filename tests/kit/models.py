"""Models for the tests of agents, which say what a test has written, without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from pydantic_ai import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

Answer = str | Sequence[ToolCallPart]
Said = Callable[[int], None]


def call(tool: str, id_: str, **arguments: Any) -> ToolCallPart:
    return ToolCallPart(tool, arguments, tool_call_id=id_)


def script(*answers: Answer, said: Said = lambda number: None) -> FunctionModel:
    """Returns a model whose n-th response in a conversation is the n-th answer: a text, or calls of tools.

    `said` is told of each request, by its number from 1.
    """

    def turn(messages: list[ModelMessage]) -> Answer:
        number = sum(isinstance(message, ModelResponse) for message in messages)
        said(number + 1)
        return answers[number]

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        answer = turn(messages)
        return ModelResponse(parts=[TextPart(answer)] if isinstance(answer, str) else list(answer))

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        answer = turn(messages)
        if isinstance(answer, str):
            for word in answer.split(" "):
                yield f"{word} "
        else:
            for n, part in enumerate(answer):
                yield {n: DeltaToolCall(part.tool_name, part.args_as_json_str(), tool_call_id=part.tool_call_id)}

    return FunctionModel(respond, stream_function=stream)


def returned(messages: list[ModelMessage]) -> dict[str, Any]:
    """Returns what tools have returned in a conversation, by the ids of their calls."""
    parts = [part for message in messages for part in message.parts]
    return {part.tool_call_id: part.content for part in parts if isinstance(part, ToolReturnPart)}
