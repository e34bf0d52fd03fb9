"""Keeps the requests of an agent to its model."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from agents import Handoff, Model, ModelProvider, ModelResponse, Tool
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest
from pydantic import TypeAdapter
from pydantic_core import to_json

from ... import documents
from ..errors import ConversationTooLong
from ..kept import Described, dumped, keep
from .place import Place, place
from .streaming import Streamed, Tell, streamed

MAX_CONVERSATION = documents.MAX_BYTES // 6
"""Most bytes of JSON in a conversation before a request: a RunState has each part of it about five times."""

_RESPONSE = TypeAdapter(ModelResponse)

Input = str | list[TResponseInputItem]


class KeptModel(Model):
    """A model whose responses are kept, in a run of an agent inside a handler."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)  # what the SDK looks for on models of its own

    async def get_response(
        self, system_instructions: str | None, input: Input, model_settings: Any, tools: list[Tool], output_schema: Any,
        handoffs: list[Handoff], tracing: Any, **more: Any,
    ) -> ModelResponse:  # fmt: skip
        """Returns the response that an attempt has kept, or makes the request and keeps its response.

        Raises BudgetExceeded or ConversationTooLong before a request that must not be made.
        """
        here = place.get()

        async def request() -> ModelResponse:
            return await self._model.get_response(
                system_instructions, input, model_settings, tools, output_schema, handoffs, tracing, **more
            )

        return await (request() if here is None else _kept(here, input, tools, handoffs, request))

    def stream_response(
        self, system_instructions: str | None, input: Input, model_settings: Any, tools: list[Tool], output_schema: Any,
        handoffs: list[Handoff], tracing: Any, **more: Any,
    ) -> AsyncIterator[TResponseStreamEvent]:  # fmt: skip
        """Streams a response, and keeps it when it is complete. Of one that is kept, it streams only the last event.

        Raises what `get_response` raises.
        """
        here, response = place.get(), Streamed()

        def stream() -> AsyncIterator[TResponseStreamEvent]:
            return self._model.stream_response(
                system_instructions, input, model_settings, tools, output_schema, handoffs, tracing, **more
            )

        async def make(tell: Tell) -> TResponseStreamEvent:
            assert here is not None
            return response.last(await _kept(here, input, tools, handoffs, lambda: response.read(stream(), tell)))

        return stream() if here is None else streamed(make)

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        return self._model.get_retry_advice(request)

    async def close(self) -> None:
        await self._model.close()

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self._model._cleanup_on_run_end(owner)


class KeptProvider(ModelProvider):
    """A provider of models whose responses are kept."""

    def __init__(self, provider: ModelProvider) -> None:
        self._provider = provider

    def get_model(self, model_name: str | None) -> Model:
        return kept_model(self._provider.get_model(model_name))

    async def aclose(self) -> None:
        await self._provider.aclose()


def kept_model(model: Model) -> Model:
    """Returns a model whose responses are kept."""
    return model if isinstance(model, KeptModel) else KeptModel(model)


def kept_provider(provider: ModelProvider) -> ModelProvider:
    """Returns a provider of models whose responses are kept."""
    return provider if isinstance(provider, KeptProvider) else KeptProvider(provider)


async def _kept(
    here: Place, input: Input, tools: list[Tool], handoffs: list[Handoff],
    request: Callable[[], Awaitable[ModelResponse]],
) -> ModelResponse:  # fmt: skip
    named = sorted([*(tool.name for tool in tools), *(handoff.tool_name for handoff in handoffs)])
    what = Described(
        here.agent, here.key("request"), {"tools": named, "said": _said(input)}, title=f"the model of {here.agent}"
    )

    async def make() -> Any:
        return dumped(_dump, await request(), what)

    _note(here, input)
    kept = await keep(here.attempt, what, make, before=lambda: _require_room(here, input))
    response = _RESPONSE.validate_python(kept.result)
    here.turn += 1
    here.attempt.spending.add(response.usage.total_tokens, made=kept.made)
    return response


def _dump(response: ModelResponse) -> Any:
    # As the SDK writes items: what the API hasn't sent is not there, and names are the API's.
    return _RESPONSE.dump_python(response, mode="json", by_alias=True, exclude_unset=True)


def _note(here: Place, input: Input) -> None:
    if here.conversation is not None:
        here.conversation[:] = [{"role": "user", "content": input}] if isinstance(input, str) else input


def _require_room(here: Place, input: Input) -> None:
    """Raises BudgetExceeded or ConversationTooLong if the next request must not be made."""
    here.attempt.spending.require()
    # Only what is new is measured: a conversation grows by a few items at a time.
    counted, size = here.measured
    if isinstance(input, str) or counted > len(input):
        counted, size = 0, 0
    size += len(to_json(input[counted:], fallback=str))
    here.measured = len(input), size
    if size > MAX_CONVERSATION:
        raise ConversationTooLong(size, MAX_CONVERSATION)


def _said(input: Input) -> str:
    """Returns a hash of what leads to a request, without what was kept itself."""
    hashed = hashlib.sha256()
    for part in _parts([{"role": "user", "content": input}] if isinstance(input, str) else input):
        hashed.update(to_json(part, fallback=str))
    return hashed.hexdigest()[:16]


def _parts(items: Sequence[Any]) -> Iterator[list[Any]]:
    for item in items:
        given: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
        role = given.get("role")
        said = [given.get("type", "message"), role, given.get("name"), given.get("call_id")]
        if role in ("user", "system", "developer"):
            said.append(given.get("content"))
        yield said
