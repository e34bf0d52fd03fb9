"""Makes an agent a stage: it runs, asks people about tool calls, and goes on with what they decide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    RunContextWrapper,
    RunResult,
    RunResultStreaming,
    RunState,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)
from agents.exceptions import UserError
from agents.items import ItemHelpers, TResponseInputItem

from ...definition.outcome import Backoff, Go, Reject
from ...definition.pipeline import Pipeline
from ...definition.run import Run
from ...definition.waits.approval import WaitForApproval
from ...errors import DefinitionError
from .. import data
from ..attempt import durable
from ..budget import Budget, Spending
from ..decisions import Decision, decisions
from ..errors import BudgetExceeded
from ..stages import check_given, stage_of_turns
from .copies import agents_of, names_twice
from .place import conversation, decided
from .questions import Ask, Pending, decide, pending, problems, questions
from .runner import OutboxRunner
from .states import restored, without_decisions, written
from .streaming import EventStreamHandler
from .transcript import Transcript

Data = TypeVar("Data")
Output = TypeVar("Output")

Prompt = str | list[TResponseInputItem]
Finish = Callable[[Run[Data], Output], Any]

_FINAL = (
    MaxTurnsExceeded, ModelBehaviorError, ModelRefusalError, InputGuardrailTripwireTriggered,
    OutputGuardrailTripwireTriggered, ToolInputGuardrailTripwireTriggered, ToolOutputGuardrailTripwireTriggered,
)  # fmt: skip
"""What another attempt would come to as well, with the results that are kept."""


def agent_stage(
    pipeline: Pipeline[Data],
    agent: Agent[Any],
    *,
    on: str | Iterable[str],
    to: str | Iterable[str],
    prompt: Callable[[Data], Prompt],
    name: str | None = None,
    context: Callable[[Run[Data]], Any] | None = None,
    waiting: str = "WAITING_FOR_APPROVAL",
    answered: str = "ANSWERED",
    deadline: timedelta | None = None,
    ask: Ask | None = None,
    budget: Budget | None = None,
    on_budget: str | None = None,
    run_config: RunConfig | None = None,
    event_stream_handler: EventStreamHandler | None = None,
    transcript: str = "transcript",
    retry: Backoff | None = None,
    timeout: float | timedelta = 600.0,
    **options: Any,
) -> Callable[[Finish[Data, Any]], Finish[Data, Any]]:
    """Makes an agent the handler of workflows in `on`; the decorated function gets the run and the agent's output.

    The function, plain or async, returns what a handler returns: data, `Go(status, data)` or None. `run.data` then has
    the conversation. `prompt` makes the agent's input from the data; of a workflow that has a conversation already, it
    is the next message of the user, to the agent that had the last word. `context` makes the agent's context from the
    run.

    Each tool call that needs approval becomes a question: the workflow waits in `waiting`, and any answer leads to
    `answered`, which the stage takes, too. "approve" makes the call, with the arguments of the answer's `about` if it
    has any; arguments that don't fit the tool are asked about again. "deny", a question that was withdrawn and one
    whose `deadline` has passed deny the call; the reason is told to the agent. `ask` returns further parameters of the
    question about a call, such as `assignee`; not `name`, `options` and `about`.

    Only the answers in the database count, to what this stage has asked right before, and with the arguments there. A
    call in the conversation without one is asked about in `answered`, and denied in the statuses `on`.

    `transcript` names the field of the data, a Transcript. Above its `budget` the agent is stopped: the workflow moves
    to `on_budget`, or without that its job is dead. With a budget, the SDK's `max_turns` doesn't count.
    `event_stream_handler` is that of `OutboxRunner.run`. `retry`, `timeout` and `options` are those of
    `Pipeline.stage`.

    Raises DefinitionError if the stage is defined wrongly.
    """
    if not isinstance(agent, Agent):
        raise DefinitionError("agent_stage() is for an Agent of the OpenAI Agents SDK")
    if twice := next(iter(names_twice(agent)), None):
        raise DefinitionError(
            f"agent_stage: two agents have the name {twice!r}: a decision names the agent that it is for"
        )
    called = name or agent.name
    pipeline.data_type().require_field((transcript,), f"stage {called}: transcript=")
    check_given(f"stage {called}", deadline=deadline, budget=budget, prompt=prompt, context=context, ask=ask)
    loop = _Loop(agent, prompt, context, waiting, answered, deadline, ask, budget, on_budget, run_config,
                 event_stream_handler, transcript)  # fmt: skip
    return stage_of_turns(
        pipeline, called, loop.turn, on=on, to=to, waiting=waiting, answered=answered, stopped=on_budget, retry=retry,
        timeout=timeout, options=options,
    )  # fmt: skip


class _Loop:
    """One agent in one pipeline."""

    def __init__(
        self, agent: Agent[Any], prompt: Callable[[Any], Prompt], context: Callable[[Any], Any] | None, waiting: str,
        answered: str, deadline: timedelta | None, ask: Ask | None, budget: Budget | None, on_budget: str | None,
        run_config: RunConfig | None, handler: EventStreamHandler | None, field: str,
    ) -> None:  # fmt: skip
        self._agent = agent
        self._prompt = prompt
        self._context = context
        self._waiting = waiting
        self._answered = answered
        self._deadline = deadline
        self._ask = ask
        self._budget = budget
        self._on_budget = on_budget
        self._run_config = run_config
        self._handler = handler
        self._field = field

    async def turn(self, run: Run[Any], finish: Finish[Any, Any], ends: frozenset[str]) -> Any:
        """Runs the agent until it has an output, or asks; returns what the handler returns."""
        before = data.read(Transcript, run.data, self._field)
        context = None if self._context is None else self._context(run)
        state = None
        if before.state is not None:
            state = await restored(self._agent, without_decisions(before.state), context)
        calls = [] if state is None else pending(state.get_interruptions())
        answers = await decisions(run, calls)
        if run.status == self._answered:
            wrong = await problems(calls, answers, RunContextWrapper(context))
            if again := [each for each in calls if each.tool_call_id in wrong or each.tool_call_id not in answers]:
                return self._wait(run, again, before, wrong)
        with durable(run, budget=self._budget, spent=(before.requests, before.tokens)) as spending:
            said: list[Any] = list(before.messages)
            try:
                result = await self._run(run, before, state, calls, answers, context, said)
            except BudgetExceeded as error:
                if self._on_budget is None:
                    raise
                after = _spent(spending, messages=said, agent=before.agent, stopped=str(error))
                return Go(self._on_budget, data.write(run.data, {self._field: after}))
            except _FINAL as error:
                raise Reject(f"{type(error).__name__}: {error}") from error
            agent = result.last_agent.name
            if result.interruptions:
                after = _spent(spending, state=without_decisions(written(result.to_state())), agent=agent)
                return self._wait(run, pending(result.interruptions), after)
            after = _spent(spending, messages=result.to_input_list(), agent=agent)
            run.data = data.write(run.data, {self._field: after})
            outcome = finish(run, result.final_output)
            if inspect.isawaitable(outcome):
                outcome = await outcome
        return data.with_data(outcome, run.data, ends)

    async def _run(
        self, run: Run[Any], before: Transcript, state: RunState[Any] | None, calls: list[Pending],
        answers: dict[str, Decision], context: Any, said: list[Any],
    ) -> RunResult | RunResultStreaming:  # fmt: skip
        agent, input = self._agent, self._input(run, before, state)
        made = {} if state is None else decide(state, calls, answers)
        if state is None:
            agent = next((each for each in agents_of(agent) if each.name == before.agent), agent)
        given: dict[str, Any] = {"context": context}
        if self._run_config is not None:
            given["run_config"] = self._run_config
        if self._budget is not None:
            given["max_turns"] = None  # the SDK's own would end it at 10
        tokens = decided.set(made), conversation.set(said)
        try:
            return await OutboxRunner.run(agent, input, event_stream_handler=self._handler, **given)
        finally:
            decided.reset(tokens[0])
            conversation.reset(tokens[1])

    def _input(self, run: Run[Any], before: Transcript, state: RunState[Any] | None) -> Any:
        if state is not None:
            if run.status != self._answered:
                try:
                    state.add_input(self._prompt(run.data))
                except UserError as error:  # it has no turn left, or ends with what its tools return
                    raise Reject(f"the conversation can't go on: {error}") from error
            return state
        prompt = self._prompt(run.data)
        return [*before.messages, *ItemHelpers.input_to_new_input_list(prompt)] if before.messages else prompt

    def _wait(
        self, run: Run[Any], calls: list[Pending], after: Transcript, wrong: dict[str, str] | None = None
    ) -> WaitForApproval[Any]:
        return WaitForApproval(
            questions=questions(calls, self._answered, self._ask, wrong),
            status=self._waiting,
            deadline=self._deadline,
            on_deadline=None if self._deadline is None else self._answered,
            data=data.write(run.data, {self._field: after}),
        )


def _spent(spending: Spending, **kept: Any) -> Transcript:
    return Transcript(requests=spending.workflow_requests, tokens=spending.workflow_tokens, **kept)
