"""Streams a model's response while it is made and kept, and a run's events to a function."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from agents import ModelResponse, RunContextWrapper, RunResultStreaming, StreamEvent, Usage
from agents.exceptions import ModelBehaviorError
from agents.items import TResponseStreamEvent
from openai.types.responses import Response, ResponseCompletedEvent, ResponseUsage

from .place import Place

EventStreamHandler = Callable[[RunContextWrapper[Any], AsyncIterator[StreamEvent]], Awaitable[None]]
"""Gets the context and the events of a run: `async def hear(ctx, events)`."""

Tell = Callable[[TResponseStreamEvent], None]


class Streamed:
    """A response that a model streams. Its last event is held back: after it, the SDK calls tools."""

    def __init__(self) -> None:
        self._last: ResponseCompletedEvent | None = None

    async def read(self, stream: AsyncIterator[TResponseStreamEvent], tell: Tell) -> ModelResponse:
        """Tells the events of a stream but the last one. Returns the response when it is complete."""
        output: list[Any] = []
        async for event in stream:
            if event.type == "response.completed":
                self._last = event
            else:
                tell(event)
            if event.type == "response.output_item.done":
                output.append(event.item)
        if self._last is None:
            raise ModelBehaviorError("Model did not produce a final response!")
        response = self._last.response
        # As the SDK does: some models stream the output, and leave it out of the response at the end.
        return ModelResponse(
            output=response.output or output, usage=_usage(response.usage), response_id=response.id,
            request_id=getattr(response, "_request_id", None),
        )  # fmt: skip

    def last(self, kept: ModelResponse) -> ResponseCompletedEvent:
        """Returns the last event, with the output that is kept: the same in each attempt."""
        if self._last is None:
            return _completed(kept)
        self._last.response.output = kept.output
        return self._last


async def streamed(make: Callable[[Tell], Awaitable[TResponseStreamEvent]]) -> AsyncIterator[TResponseStreamEvent]:
    """Yields the events that `make` tells, while it runs, and then the one that it returns."""
    events: asyncio.Queue[TResponseStreamEvent | None] = asyncio.Queue()

    async def made() -> TResponseStreamEvent:
        try:
            return await make(events.put_nowait)
        finally:
            events.put_nowait(None)

    making = asyncio.create_task(made())
    try:
        while (event := await events.get()) is not None:
            yield event
        yield await making
    finally:
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)


async def deliver(result: RunResultStreaming, handler: EventStreamHandler, here: Place | None) -> None:
    """Gives a run's events to the handler. Returns when the run has ended; raises what ends it, or the handler."""
    running = result.run_loop_task
    assert running is not None
    events = result.stream_events()
    try:
        await handler(result.context_wrapper, events)
        async for _ in events:
            pass  # what the handler has left
        async for _ in result.stream_events():
            pass  # it raises what a handler isn't told that has closed its events
    except Exception:
        if here is not None:
            await here.attempt.run._others_end()
        raise
    finally:
        if not running.done():
            result.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _completed(response: ModelResponse) -> ResponseCompletedEvent:
    """Returns the last event of a response that an earlier attempt has kept."""
    usage = response.usage
    made = Response.model_construct(
        id=response.response_id, object="response", status="completed", output=response.output,
        usage=None if not usage.total_tokens else ResponseUsage.model_construct(
            input_tokens=usage.input_tokens, input_tokens_details=usage.input_tokens_details,
            output_tokens=usage.output_tokens, output_tokens_details=usage.output_tokens_details,
            total_tokens=usage.total_tokens,
        ),
    )  # fmt: skip
    made._request_id = response.request_id
    return ResponseCompletedEvent.model_construct(type="response.completed", sequence_number=0, response=made)


def _usage(given: ResponseUsage | None) -> Usage:
    if given is None:
        return Usage(requests=1)
    return Usage(
        requests=1, input_tokens=given.input_tokens, input_tokens_details=given.input_tokens_details,
        output_tokens=given.output_tokens, output_tokens_details=given.output_tokens_details,
        total_tokens=given.total_tokens,
    )  # fmt: skip
