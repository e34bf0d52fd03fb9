"""Makes an agent a stage: it runs, asks people about tool calls, and goes on with what they decide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from pydantic_ai import Agent, DeferredToolRequests, ModelMessage, UserContent, capture_run_messages
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.usage import UsageLimits

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
from .answers import pending, results
from .durability import OutboxDurability
from .questions import Ask, problems, questions
from .transcript import Transcript, calls_as_json, messages_as_json

Data = TypeVar("Data")
Output = TypeVar("Output")
Deps = TypeVar("Deps")

Prompt = str | Sequence[UserContent] | None
Finish = Callable[[Run[Data], Output], Any]


def agent_stage(
    pipeline: Pipeline[Data],
    agent: Agent[Deps, Any],
    *,
    on: str | Iterable[str],
    to: str | Iterable[str],
    prompt: Callable[[Data], Prompt],
    name: str | None = None,
    deps: Callable[[Run[Data]], Deps] | None = None,
    waiting: str = "WAITING_FOR_APPROVAL",
    answered: str = "ANSWERED",
    deadline: timedelta | None = None,
    ask: Ask | None = None,
    budget: Budget | None = None,
    on_budget: str | None = None,
    transcript: str = "transcript",
    retry: Backoff | None = None,
    timeout: float | timedelta = 600.0,
    **options: Any,
) -> Callable[[Finish[Data, Any]], Finish[Data, Any]]:
    """Makes an agent the handler of workflows in `on`; the decorated function gets the run and the agent's output.

    The function, plain or async, returns what a handler returns: data, `Go(status, data)` or None. `run.data` then has
    the conversation. `prompt` makes the agent's prompt from the data; of a workflow that has a conversation already, it
    is the next message of the user. `deps` makes the agent's dependencies from the run.

    Each tool call that needs approval becomes a question: the workflow waits in `waiting`, and any answer leads to
    `answered`, which the stage takes, too. "approve" makes the call, with the arguments of the answer's `about` if it
    has any; arguments that don't fit the tool are asked about again. "deny", a question that was withdrawn and one
    whose `deadline` has passed deny the call; the reason is told to the agent. The question about a call that is made
    elsewhere has "answer" instead of "approve", and its result is `result` in `about`. `ask` returns further parameters
    of the question about a call, such as `assignee`; not `name`, `options` and `about`.

    Only the answers in the database count, to what this stage has asked right before, and with the arguments there. A
    call in the conversation without one is asked about in `answered`, and denied in the statuses `on`.

    `transcript` names the field of the data, a Transcript. Above its `budget` the agent is stopped: the workflow moves
    to `on_budget`, or without that its job is dead. `retry`, `timeout` and `options` are those of `Pipeline.stage`.

    Raises DefinitionError if the agent has no OutboxDurability, or the stage is defined wrongly.
    """
    called = name or agent.name or ""
    if OutboxDurability.from_agent(agent) is None:
        raise DefinitionError(f"stage {called}: the agent needs capabilities=[OutboxDurability()]")
    pipeline.data_type().require_field((transcript,), f"stage {called}: transcript=")
    check_given(f"stage {called}", deadline=deadline, budget=budget, prompt=prompt, deps=deps, ask=ask)
    loop = _Loop(agent, prompt, deps, waiting, answered, deadline, ask, budget, on_budget, transcript)
    return stage_of_turns(
        pipeline, called, loop.turn, on=on, to=to, waiting=waiting, answered=answered, stopped=on_budget, retry=retry,
        timeout=timeout, options=options,
    )  # fmt: skip


class _Loop:
    """One agent in one pipeline."""

    def __init__(
        self, agent: Agent[Any, Any], prompt: Callable[[Any], Prompt], deps: Callable[[Any], Any] | None, waiting: str,
        answered: str, deadline: timedelta | None, ask: Ask | None, budget: Budget | None, on_budget: str | None,
        field: str,
    ) -> None:  # fmt: skip
        self._agent = agent
        self._prompt = prompt
        self._deps = deps
        self._waiting = waiting
        self._answered = answered
        self._deadline = deadline
        self._ask = ask
        self._budget = budget
        self._on_budget = on_budget
        self._field = field

    async def turn(self, run: Run[Any], finish: Finish[Any, Any], ends: frozenset[str]) -> Any:
        """Runs the agent until it has an output, or asks; returns what the handler returns."""
        before = data.read(Transcript, run.data, self._field)
        history = before.history()
        calls = pending(history)
        decided = await decisions(run, calls)
        if run.status == self._answered:
            wrong = problems(self._agent, calls, decided)
            if again := [each for each in calls if each.tool_call_id in wrong or each.tool_call_id not in decided]:
                return self._wait(run, _requests(again, before.made_elsewhere()), before, wrong)
        with durable(run, budget=self._budget, spent=(before.requests, before.tokens)) as spending:
            with capture_run_messages() as messages:
                try:
                    output = await self._run(run, history, calls, decided)
                except BudgetExceeded as error:
                    if self._on_budget is None:
                        raise
                    after = _after(messages, spending, stopped=str(error))
                    return Go(self._on_budget, data.write(run.data, {self._field: after}))
                except UsageLimitExceeded as error:  # what was kept leads another attempt to the same
                    raise Reject(f"{type(error).__name__}: {error}") from error
            after = _after(messages, spending)
            if isinstance(output, DeferredToolRequests):
                return self._wait(run, output, after)
            run.data = data.write(run.data, {self._field: after})
            outcome = finish(run, output)
            if inspect.isawaitable(outcome):
                outcome = await outcome
        return data.with_data(outcome, run.data, ends)

    async def _run(
        self, run: Run[Any], history: Sequence[ModelMessage], calls: Sequence[ToolCallPart],
        decided: Mapping[str, Decision],
    ) -> Any:  # fmt: skip
        given: dict[str, Any] = {"output_type": _output_types(self._agent)}
        if self._deps is not None:
            given["deps"] = self._deps(run)
        if history:
            given["message_history"] = history
        if self._budget is not None:
            given["usage_limits"] = UsageLimits(request_limit=None)  # the framework's own would end it at 50
        if calls:
            given["deferred_tool_results"] = results(calls, decided)
        goes_on = calls and run.status == self._answered
        result = await self._agent.run(None if goes_on else self._prompt(run.data), **given)
        return result.output

    def _wait(
        self, run: Run[Any], requests: DeferredToolRequests, after: Transcript, wrong: Mapping[str, str] | None = None
    ) -> WaitForApproval[Any]:
        return WaitForApproval(
            questions=questions(self._agent, requests, self._answered, self._ask, wrong),
            status=self._waiting,
            deadline=self._deadline,
            on_deadline=None if self._deadline is None else self._answered,
            data=data.write(run.data, {self._field: after.model_copy(update={"asked": calls_as_json(requests)})}),
        )


def _requests(calls: Sequence[ToolCallPart], made_elsewhere: set[str]) -> DeferredToolRequests:
    external = [each for each in calls if each.tool_call_id in made_elsewhere]
    return DeferredToolRequests(approvals=[each for each in calls if each not in external], calls=external)


def _after(messages: Sequence[ModelMessage], spending: Spending, stopped: str | None = None) -> Transcript:
    return Transcript(
        messages=messages_as_json(messages), requests=spending.workflow_requests, tokens=spending.workflow_tokens,
        stopped=stopped,
    )  # fmt: skip


def _output_types(agent: Agent[Any, Any]) -> Any:
    """Returns the agent's types of output, and calls that wait for people. None if its own types have those."""
    given: Any = agent.output_type
    types = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return None if DeferredToolRequests in types else [*types, DeferredToolRequests]
