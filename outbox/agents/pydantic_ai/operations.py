"""Keeps what an agent does: each model request, tool call and discovery of tools is made once over all attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic_ai import ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.durable_exec import (
    BoundDurableOperation,
    DurableOperation,
    DurableOperationBackend,
    EventStreamHandlerId,
    ModelRequestParams,
    ToolsetCallToolId,
    ToolsetValidateToolArgumentsId,
    durable_unit_scope,
)
from pydantic_ai.toolsets import ToolsetTool

from ... import documents
from .. import policy
from ..attempt import Attempt, current
from ..errors import ConversationTooLong
from ..kept import dumped, keep, tool_result
from ..policy import NO_POLICY, ToolPolicy
from .described import describe

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
        what = describe(self._agent, attempt, operation.operation_id, params)

        async def make() -> object:
            with durable_unit_scope():
                result = await operation.handler(params)
            dump = tool_result if isinstance(operation.operation_id, ToolsetCallToolId) else dumped
            return dump(operation.result_codec.dump, result, what)

        def before() -> None:
            if isinstance(params, ModelRequestParams):
                _require_room(attempt, params)

        kept = await keep(
            attempt, what, make, before=before, policy=config if isinstance(config, ToolPolicy) else NO_POLICY,
            about=getattr(params, "tool_args", None), told=lambda result: {"kind": "tool_return", "result": result},
        )  # fmt: skip
        result = operation.result_codec.load(kept.result)
        if isinstance(result, ModelResponse):
            attempt.spending.add(result.usage.total_tokens, made=kept.made)
        return result


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
