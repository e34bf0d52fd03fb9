"""Keeps what an agent does: each model request, tool call and discovery of tools is made once over all attempts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic_ai import ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.durable_exec import (
    BoundDurableOperation,
    DurableOperation,
    DurableOperationBackend,
    EventStreamHandlerId,
    ModelRequestParams,
    ToolsetValidateToolArgumentsId,
    durable_unit_scope,
)
from pydantic_ai.toolsets import ToolsetTool
from pydantic_core import from_json, to_json

from ... import documents, texts
from ...definition.effect import Ask, OnUnknown
from ...definition.run import Run
from ...errors import AgentChanged, InvalidInput
from . import policy
from .attempt import Attempt, current
from .described import Described, describe, difference
from .errors import ConversationTooLong, ResultRefused
from .policy import NO_POLICY, ToolPolicy

MAX_CONVERSATION = documents.MAX_BYTES * 3 // 4
"""Most bytes of JSON in a conversation before a request: with its answer, it must fit into the workflow's data."""

Params = TypeVar("Params")
Wire = TypeVar("Wire")
Result = TypeVar("Result")


class Backend(DurableOperationBackend[ToolPolicy]):
    """Runs the operations of one agent."""

    def __init__(self, agent: str) -> None:
        self._agent = agent

    def bind(self, operation: DurableOperation[Params, Wire, Result]) -> BoundDurableOperation[Params, Wire, Result]:
        """Returns the operation as an agent calls it."""
        return Operation(self._agent, operation)

    def config_for_tool(
        self, operation: DurableOperation[Any, Any, Any], *, tool: object | None, tool_name: str
    ) -> ToolPolicy | Literal[False]:
        """Returns how the calls of a tool are kept. Raises DefinitionError if its metadata is wrong."""
        if tool is None:
            return NO_POLICY
        found = policy.read(cast("ToolsetTool[Any]", tool).tool_def.metadata, tool_name)
        if found and isinstance(operation.operation_id, ToolsetValidateToolArgumentsId):
            return NO_POLICY
        return found

    def registrations(self) -> Sequence[Callable[..., object]]:
        """Returns nothing: a worker knows no operations beforehand."""
        return ()


class Operation(BoundDurableOperation[Params, Wire, Result], Generic[Params, Wire, Result]):
    """An operation of an agent whose result is kept."""

    def __init__(self, agent: str, operation: DurableOperation[Params, Wire, Result]) -> None:
        self._agent = agent
        self._operation = operation

    @property
    def operation(self) -> DurableOperation[Params, Wire, Result]:
        return self._operation

    async def __call__(self, params: Params, *, config: object | None = None) -> Result:
        """Returns the result that an attempt has kept, or makes the call and keeps its result.

        Events are delivered and not kept. Raises AgentChanged if what was kept is the result of something else, and
        ResultRefused if the result can't be kept.
        """
        operation, attempt = self._operation, current()
        if attempt is None or isinstance(operation.operation_id, EventStreamHandlerId):
            return await operation.handler(params)
        attempt.require_loop()
        what = describe(self._agent, operation.operation_id, params)
        key = attempt.key(what.run_id, what.place)
        of_tool = config if isinstance(config, ToolPolicy) else NO_POLICY
        idempotency_key = attempt.run.effect_key(key) if of_tool.effect else f"{attempt.run.idempotency_key}:{key}"

        async def make() -> Result:
            if isinstance(params, ModelRequestParams):
                _require_room(attempt, params)
            return await of_tool.call(once)

        async def once() -> Result:
            with attempt.within(key, idempotency_key), durable_unit_scope():
                return await operation.handler(params)

        call = Call(make, operation.result_codec.dump, what)
        on_unknown = _asking(self._agent, of_tool, params) if of_tool.effect else None
        kept = await call.kept(attempt.run, key, on_unknown)
        if kept["of"] != what.identity:
            raise AgentChanged(
                f"agent {self._agent}: an earlier attempt has kept {key!r}: {difference(kept['of'], what.identity)}. "
                "Bring back the code that the job began with, or move the workflow to its status again"
            )
        result = operation.result_codec.load(kept["result"])
        if isinstance(result, ModelResponse):
            attempt.spending.add(result.usage.total_tokens, made=call.returned)
        return result


def _asking(agent: str, of_tool: ToolPolicy, params: Any) -> OnUnknown:
    """Returns how an effect of a tool becomes known. A person is told which call it was."""
    if of_tool.on_unknown != "ask":
        return of_tool.on_unknown
    question = texts.clean(f"{agent}: has this call happened? {params.name}")
    try:
        return Ask(question, about=from_json(to_json(params.tool_args, fallback=str)))
    except InvalidInput:  # Postgres can't hold them, but the call needs no place there
        return Ask(question)


class Call:
    """A call as `run.once` makes it. Keys belong to the name of this class, whatever is called."""

    def __init__(self, make: Callable[[], Awaitable[Any]], dump: Callable[[Any], object], what: Described) -> None:
        self._make = make
        self._dump = dump
        self._what = what
        self.returned = False

    async def kept(self, run: Run[Any], key: str, on_unknown: OnUnknown | None) -> dict[str, Any]:
        """Makes the call and keeps its result, or returns what was kept. With `on_unknown`, it is an effect."""
        try:
            kept: Any = await (
                run.once(key, self) if on_unknown is None else run.effect(key, self, on_unknown=on_unknown)
            )
        except InvalidInput as error:
            if not self.returned:
                raise  # it is the tool's own
            raise ResultRefused(self._what.title, error.problem) from error
        if isinstance(kept, dict) and kept.keys() == {"of", "result"}:
            return kept
        # The result of an effect that a person or a look-up has given is that of the tool itself.
        return {"of": self._what.identity, "result": {"kind": "tool_return", "result": kept}}

    async def __call__(self) -> dict[str, Any]:
        result = await self._make()
        self.returned = True
        try:
            return {"of": self._what.identity, "result": self._dump(result)}
        except Exception as error:  # whatever a user's serializer raises
            raise ResultRefused(self._what.title, texts.printable(error)) from error


def _require_room(attempt: Attempt, params: ModelRequestParams) -> None:
    """Raises BudgetExceeded or ConversationTooLong if the next request must not be made."""
    attempt.spending.require()
    run_id = params.run_context.run_id or ""
    # Only what is new is measured: a conversation grows by a message at a time.
    counted, size = attempt.sizes.get(run_id, (0, 0))
    if counted > len(params.messages):
        counted, size = 0, 0
    size += len(ModelMessagesTypeAdapter.dump_json(params.messages[counted:]))
    attempt.sizes[run_id] = len(params.messages), size
    if size > MAX_CONVERSATION:
        raise ConversationTooLong(size, MAX_CONVERSATION)
