"""Makes a graph a stage: it runs, asks what its interrupts ask, and goes on with the answers."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.errors import GraphRecursionError, is_invalid_resume
from langgraph.pregel import Pregel
from langgraph.types import Command, Interrupt, StreamMode

from ...definition.outcome import Backoff, Reject
from ...definition.pipeline import Pipeline
from ...definition.reasons import describe
from ...definition.run import Run
from ...definition.waits.approval import WaitForApproval
from ...definition.waits.wait import Wait
from ...errors import DefinitionError, HandlerError
from ..data import read, value, with_data, write
from ..stages import check_given, stage_of_turns
from .changed import require_same
from .encoding import Encoding
from .errors import InterruptRefused
from .interrupts import Ask, Interrupts, Resume, as_asked, as_resumed
from .journal import Journal
from .known import known_to, with_subgraphs
from .progress import progress
from .saver import Saver
from .thread import Thread

Data = TypeVar("Data")

Graph = Pregel[Any, Any, Any, Any]
Finish = Callable[[Run[Data], Any], Any]

StreamedEvent = tuple[tuple[str, ...], StreamMode, Any]
"""What a graph streams: the namespace of its subgraph, the mode, and a chunk."""

EventStreamHandler = Callable[[Run[Any], AsyncIterator[StreamedEvent]], Awaitable[None]]

_OWN_MODES: frozenset[StreamMode] = frozenset({"values", "tasks", "custom"})
"""What the output and the progress are taken from."""


def graph_stage(
    pipeline: Pipeline[Data],
    graph: Graph,
    *,
    on: str | Iterable[str],
    to: str | Iterable[str],
    input: Callable[[Data], Any],
    name: str | None = None,
    context: Callable[[Run[Data]], Any] | None = None,
    config: Mapping[str, Any] | None = None,
    waiting: str = "WAITING_FOR_ANSWER",
    answered: str = "ANSWERED",
    deadline: timedelta | None = None,
    ask: Ask | None = None,
    resume: Resume | None = None,
    signal_into: str | None = None,
    thread: str = "thread",
    types: Sequence[type] = (),
    event_stream_handler: EventStreamHandler | None = None,
    stream_mode: Sequence[StreamMode] = ("updates", "messages", "custom"),
    retry: Backoff | None = None,
    timeout: float | timedelta = 600.0,
    **options: Any,
) -> Callable[[Finish[Data]], Finish[Data]]:
    """Makes a graph the handler of workflows in `on`; the decorated function gets the run and the graph's output.

    The graph is one of LangGraph, compiled without a checkpointer. `input` makes its input from the data, and `context`
    its runtime context from the run. `config` is a RunnableConfig, such as `{"recursion_limit": 100}`. The function,
    plain or async, returns what a handler returns: data, `Go(status, data)` or None. `thread` names the field of the
    data that names the graph's state, a Thread. A workflow that comes to `on` again goes on with the same state.

    Each `interrupt(value)` becomes a question: the workflow waits in `waiting`, and any answer leads to `answered`,
    which the stage takes, too. `value` is the text, or a dict with parameters of `Question`, of which `options` is a
    list: `{"question": "Send it?", "options": ["yes", "no"], "about": draft}`. `interrupt()` returns a dict with
    `decision`, `by`, `reason`, `about` and `ended`. After `deadline`, `ended` is "deadline", and `decision` is None.
    `ask` makes such parameters of another value, and `resume` what `interrupt()` returns, of the value and the Answer.

    For an interrupt `{"signal": name, "timeout": …}` the workflow waits for a signal. Its payload is stored in the
    field `signal_into`, and is what `interrupt()` returns: None after the timeout, which is `deadline` by default.

    `types` are classes of objects in the state that no schema of the graph names. `event_stream_handler`, an
    `async def hear(run, events)`, gets what the graph streams in the modes of `stream_mode`, as `(namespace, mode,
    chunk)`, in each attempt. A node whose end was kept doesn't run again, so it streams nothing. `retry`, `timeout` and
    `options` are those of `Pipeline.stage`.

    Raises DefinitionError if the graph has a checkpointer or breakpoints, or the stage is defined wrongly.
    """
    called = name or graph.get_name()
    _check(graph, f"stage {called}: ", options)
    require = pipeline.data_type().require_field
    require((thread,), f"stage {called}: thread=")
    check_given(f"stage {called}", deadline=deadline, input=input, context=context, ask=ask, resume=resume)
    if signal_into is not None:
        require((signal_into,), f"stage {called}: signal_into=")
    interrupts = Interrupts(ask or as_asked, resume or as_resumed, answered)
    turns = _Turns(
        graph, Encoding(known_to(graph, types)), _has_changes(graph), input, context, dict(config or {}), interrupts,
        waiting, answered, deadline, signal_into, thread, event_stream_handler, frozenset(stream_mode),
    )  # fmt: skip

    async def turn(run: Run[Any], function: Any, ends: frozenset[str]) -> Any:
        journal = Journal(run)
        try:
            return await turns.turn(run, journal, function, ends)
        finally:
            await journal.close()

    return stage_of_turns(
        pipeline, called, turn, on=on, to=to, waiting=waiting, answered=answered, stopped=None, retry=retry,
        timeout=timeout, options=options,
    )  # fmt: skip


@dataclass(frozen=True)
class _Turns:
    """One graph in one pipeline."""

    graph: Graph
    encoding: Encoding
    has_changes: bool
    input: Callable[[Any], Any]
    context: Callable[[Any], Any] | None
    config: dict[str, Any]
    interrupts: Interrupts
    waiting: str
    answered: str
    deadline: timedelta | None
    signal_into: str | None
    field: str
    handler: EventStreamHandler | None
    handled: frozenset[StreamMode]

    async def turn(self, run: Run[Any], journal: Journal, finish: Finish[Any], ends: frozenset[str]) -> Any:
        """Runs the graph until it ends, or asks; returns what the handler returns."""
        thread = read(Thread, run.data, self.field)
        saver = Saver(self.encoding, journal)
        if thread.state is not None:
            for operation in json.loads(await run.load(thread.state)):
                saver.apply(operation)
        before = await journal.read()
        for operation in before:
            saver.apply(operation)
        graph, config = self.graph.copy({"checkpointer": saver}), self._config(run)
        begins = run.status != self.answered and not _has_input(before)
        state = await graph.aget_state(config)
        if not begins and (stored := await saver.aget_tuple(config)) is not None:
            require_same(graph, stored, state)
        if run.status == self.answered:
            pending = state.interrupts
            answers = await self._answers(run, thread, pending)
            for id_ in saver.answered():
                answers.pop(id_, None)
            if pending and not answers and not before:
                return await self._wait(run, saver, pending)
            given: Any = Command(resume=answers) if answers else None
        else:
            given = self.input(run.data) if begins else None
        try:
            output = await self._stream(graph, config, given, run)
        except GraphRecursionError as error:  # the next attempt would go on, for as many steps again
            raise Reject(f"{type(error).__name__}: {error}") from error
        except Exception as error:
            if not is_invalid_resume(error):
                raise
            pending = (await graph.aget_state(config)).interrupts
            return await self._wait(run, saver, pending, wrong=describe(error))
        state = await graph.aget_state(config)
        if state.interrupts:
            return await self._wait(run, saver, state.interrupts)
        if state.next:
            raise HandlerError(f"the graph has stopped before {', '.join(state.next)}, and asks nothing")
        run.data = write(run.data, {self.field: await self._stored(run, saver)})
        outcome = finish(run, output)
        if inspect.isawaitable(outcome):
            outcome = await outcome
        return with_data(outcome, run.data, ends)

    def _config(self, run: Run[Any]) -> RunnableConfig:
        configurable = {**self.config.get("configurable", {}), "thread_id": str(run.workflow_id)}
        return cast("RunnableConfig", {**self.config, "configurable": configurable})

    async def _stream(self, graph: Graph, config: RunnableConfig, given: Any, run: Run[Any]) -> Any:
        output: Any = None
        context = {} if self.context is None else {"context": self.context(run)}
        modes: Any = list(_OWN_MODES if self.handler is None else _OWN_MODES | self.handled)

        async def streamed() -> AsyncGenerator[StreamedEvent, None]:
            nonlocal output
            found = graph.astream(
                given,
                config,
                stream_mode=modes,
                output_keys=graph.output_channels,
                subgraphs=True,
                durability="sync",
                **context,
            )
            async with aclosing(cast("AsyncGenerator[Any, None]", found)) as chunks:
                async for namespace, mode, chunk in chunks:
                    if mode == "values" and not namespace:
                        output = chunk
                    progress(run, namespace, mode, chunk)
                    if mode in self.handled:
                        yield namespace, mode, chunk

        async with aclosing(streamed()) as events:
            if self.handler is not None:
                await self.handler(run, events)
            async for _ in events:
                pass  # what the handler has left
        return output

    async def _answers(self, run: Run[Any], thread: Thread, pending: Sequence[Interrupt]) -> dict[str, Any]:
        if thread.signal is None:
            return await self.interrupts.answers(run, pending)
        waited = [each for each in pending if each.id == thread.signal]
        if self.signal_into is None or self.interrupts.signal(waited) is None:
            return {}
        return {thread.signal: value(run.data, self.signal_into)}

    async def _wait(
        self, run: Run[Any], saver: Saver, pending: Sequence[Interrupt], wrong: str | None = None
    ) -> Wait[Any]:
        questions = self.interrupts.questions(pending, wrong)
        if not questions and (found := self.interrupts.signal(pending)):
            interrupt, name, timeout = found
            if self.signal_into is None:
                raise InterruptRefused(f"an interrupt waits for the signal {name}: give graph_stage signal_into=")
            thread = await self._stored(run, saver, signal=interrupt.id)
            data = write(run.data, {self.field: thread, self.signal_into: None})
            wait: Wait[Any] = self.interrupts.wait_for_signal(
                name, timeout or self.deadline, self.signal_into, self.waiting, data
            )
            return wait
        return WaitForApproval(
            questions=questions, status=self.waiting, deadline=self.deadline,
            on_deadline=None if self.deadline is None else self.answered,
            data=write(run.data, {self.field: await self._stored(run, saver)}),
        )  # fmt: skip

    async def _stored(self, run: Run[Any], saver: Saver, signal: str | None = None) -> Thread:
        text = saver.snapshot(str(run.workflow_id), whole=self.has_changes)
        return Thread(state=await run.store(text.encode()), signal=signal)


def _check(graph: Graph, where: str, options: Mapping[str, Any]) -> None:
    if graph.checkpointer is not None:
        raise DefinitionError(f"{where}compile the graph without a checkpointer: the stage gives it one")
    if graph.interrupt_before_nodes or graph.interrupt_after_nodes:
        raise DefinitionError(f"{where}breakpoints are for debugging: call interrupt() in a node")
    if options.get("batch") is not None:
        raise DefinitionError(f"{where}a graph has one workflow, so there is no batch=")


def _has_changes(graph: Graph) -> bool:
    """Returns whether a channel is stored as changes, for which all checkpoints are needed."""
    channels = (channel for each in with_subgraphs(graph) for channel in each.channels.values())
    return any(isinstance(channel, DeltaChannel) for channel in channels)


def _has_input(operations: Iterable[Any]) -> bool:
    """Returns whether an earlier attempt has stored the input: then it isn't given again."""
    return any("put" in each and each["put"][1] == "" for each in operations)
