"""Runs agents of the OpenAI Agents SDK such that what they do inside a handler is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast, overload

from agents import Agent, Model, RunConfig, Runner, RunResult, RunResultStreaming, RunState
from agents.items import TResponseInputItem
from agents.run import AgentRunner, RunOptions, get_default_agent_runner, set_default_agent_runner
from typing_extensions import Unpack

from ...errors import HandlerError
from ..attempt import Attempt, current, everywhere
from .copies import Copies
from .model import kept_model, kept_provider
from .place import Place, conversation, place, tool_call
from .states import bind
from .streaming import EventStreamHandler, deliver
from .tools import OURS

Context = TypeVar("Context")

everywhere()


class OutboxRunner:
    """Runs an agent as `agents.Runner` does, and keeps what it does inside a handler.

    Each model request and tool call is made once over all attempts: results are kept by `run.once`, so the next attempt
    gets them without a call. Tools of one response run in parallel. Agents that hand off, agents as tools, and those
    that tools and guardrails run, are kept, too.
    """

    @overload
    @classmethod
    async def run(
        cls, starting_agent: Agent[Context], input: str | list[TResponseInputItem] | RunState[Context], *,
        event_stream_handler: None = None, **options: Unpack[RunOptions[Context]],
    ) -> RunResult: ...  # fmt: skip

    @overload
    @classmethod
    async def run(
        cls, starting_agent: Agent[Context], input: str | list[TResponseInputItem] | RunState[Context], *,
        event_stream_handler: EventStreamHandler, **options: Unpack[RunOptions[Context]],
    ) -> RunResultStreaming: ...  # fmt: skip

    @classmethod
    async def run(
        cls, starting_agent: Agent[Context], input: str | list[TResponseInputItem] | RunState[Context], *,
        event_stream_handler: EventStreamHandler | None = None, **options: Unpack[RunOptions[Context]],
    ) -> RunResult | RunResultStreaming:  # fmt: skip
        """Runs an agent, with the options of `agents.Runner.run`. Outside of handlers, it is that function.

        With `event_stream_handler`, it runs as by `agents.Runner.run_streamed`: the function, `async def hear(ctx,
        events)`, gets the events of the whole run as they come. An attempt that gets a kept response doesn't stream it
        again: of its raw events the function gets `response.completed`, with the whole response. Events of items,
        such as calls of tools, come in each attempt.

        Raises HandlerError in a plain handler and for a `session`: the next attempt would find there what this one has
        written. Raises AgentChanged if the agent isn't as it was when an attempt kept a result, ResultRefused if a
        result can't be kept, and BudgetExceeded or ConversationTooLong before a request that must not be made.
        """
        attempt = current()
        if attempt is None:
            return await _begun(Runner, starting_agent, input, options, event_stream_handler)
        runner = get_default_agent_runner()
        if not isinstance(runner, _Nested):
            set_default_agent_runner(cast(AgentRunner, _Nested(runner)))
        else:
            runner = runner.inner
        return await _run(runner, attempt, starting_agent, input, options, event_stream_handler)


class _Nested:
    """The SDK's default runner, by which agents that run within a tool call or a guardrail are kept, too."""

    def __init__(self, inner: AgentRunner) -> None:
        self.inner = inner

    async def run(self, starting_agent: Agent[Any], input: Any, **options: Any) -> RunResult:
        attempt = current()
        if attempt is None or not _within():
            return await self.inner.run(starting_agent, input, **options)
        return cast(RunResult, await _run(self.inner, attempt, starting_agent, input, options))

    def run_sync(self, starting_agent: Agent[Any], input: Any, **options: Any) -> RunResult:
        if _within():
            raise HandlerError(
                "an agent runs in the event loop of its handler: make the tool async, and await Runner.run"
            )
        return self.inner.run_sync(starting_agent, input, **options)

    def run_streamed(self, starting_agent: Agent[Any], input: Any, **options: Any) -> Any:
        if _within():
            raise HandlerError(
                "what run_streamed returns can't be kept: await OutboxRunner.run(…, event_stream_handler=…), and use "
                "as_tool without on_stream"
            )
        return self.inner.run_streamed(starting_agent, input, **options)


def _within() -> bool:
    return place.get() is not None or tool_call.get() is not None


async def _run(
    runner: AgentRunner, attempt: Attempt, agent: Agent[Any], input: Any, options: Any,
    handler: EventStreamHandler | None = None,
) -> RunResult | RunResultStreaming:  # fmt: skip
    attempt.require_loop()
    if options.get("session") is not None:
        raise HandlerError(f"agent {agent.name}: a session can't be kept: keep the conversation in the workflow's data")
    here = Place(attempt, attempt.begin(agent.name), agent.name, conversation=conversation.get())
    given = options.get("run_config")
    config = _config(given)
    durable = Copies().of(agent)
    call = tool_call.get()
    of_place, of_call, of_conversation = place.set(here), tool_call.set(None), conversation.set(None)
    try:
        if isinstance(input, RunState):
            await bind(input, durable)
        result = await _begun(runner, durable, input, {**options, "run_config": config}, handler)
    except Exception as error:
        if (ours := _ours(error)) is not None and ours is not error:
            raise ours from ours.__cause__
        raise
    finally:
        place.reset(of_place)
        tool_call.reset(of_call)
        conversation.reset(of_conversation)
        if given is None:
            await config.model_provider.aclose()
    if result.interruptions and call is not None:
        call.waits = True
    return result


async def _begun(
    runner: AgentRunner | type[Runner], agent: Agent[Any], input: Any, options: Any, handler: EventStreamHandler | None
) -> RunResult | RunResultStreaming:
    """Runs an agent to its end, streamed if there is a handler of its events."""
    if handler is None:
        return await runner.run(agent, input, **options)
    result = runner.run_streamed(agent, input, **options)
    await deliver(result, handler, place.get())
    return result


def _config(given: Any) -> RunConfig:
    """Returns a run's configuration whose models are kept."""
    config = RunConfig(**given) if isinstance(given, Mapping) else given or RunConfig()
    return replace(
        config,
        model=kept_model(config.model) if isinstance(config.model, Model) else config.model,
        model_provider=kept_provider(config.model_provider),
    )


def _ours(error: BaseException | None) -> Exception | None:
    """Returns the error of ours that the SDK has wrapped in one of its own."""
    while error is not None:
        if isinstance(error, OURS):
            return error
        error = error.__cause__
    return None
