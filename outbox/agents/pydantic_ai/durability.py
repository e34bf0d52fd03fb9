"""Defines the capability that makes an agent durable inside the handlers of stages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic_ai import RunContext, ToolCallPart, ToolDefinition
from pydantic_ai.agent import EventStreamHandler
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    DurabilityEngineSpec,
    conversation_id_from_run_id,
)
from pydantic_ai.models import Model
from pydantic_ai.tools import AgentDepsT

from .. import policy
from ..attempt import current, everywhere
from .operations import Backend

everywhere()


class OutboxDurability(BaseDurabilityCapability[AgentDepsT]):
    """Keeps what an agent does inside a handler: each model request, tool call and MCP call is made once.

    `Agent(…, name="support", capabilities=[OutboxDurability()])`. Results are kept by `run.once`, so the next attempt
    gets them without a call. Tools of one response run in parallel. Outside of handlers, the agent is as without it.

    `models` are further models by their ids, for `agent.run(model=…)`. `event_stream_handler` gets the events of the
    model and of tools; after a crash, those of tools may come again. `name` is the agent's name for errors.
    """

    engine_spec: ClassVar[DurabilityEngineSpec] = DurabilityEngineSpec(
        engine_name="Outbox",
        durable_unit_noun="checkpoint",
        durable_container_noun="stage",
        codec=JSON_CODEC,
        toolset_lifecycles={"function": "enter-always", "mcp": "enter-in-durable-unit", "dynamic": "enter-never"},
        unsupported_runtime_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        tool_config_key=policy.KEY,
    )

    def __init__(
        self,
        *,
        models: Mapping[str, Model] | None = None,
        event_stream_handler: EventStreamHandler[AgentDepsT] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(models=models, event_stream_handler=event_stream_handler, name=name)

    @property
    def in_durable_context(self) -> bool:
        """Whether a handler runs here whose results are kept."""
        return current() is not None

    def get_durable_operation_backend(self) -> Backend:
        """Returns what runs the operations of the agent."""
        return Backend(self.name)

    def get_default_run_id(self) -> str | None:
        """Returns the id of a run that has none: the same in each attempt."""
        attempt = current()
        return None if attempt is None else attempt.begin()

    def get_default_conversation_id(self, run_id: str) -> str | None:
        """Returns the id of a conversation that has none: the same in each attempt."""
        return None if current() is None else conversation_id_from_run_id(run_id)

    async def get_run_start_time(self, run_id: str) -> datetime | None:
        """Returns when a run with a timeout has started in its first attempt."""
        if (attempt := current()) is None:
            return None
        attempt.require_loop()
        return datetime.fromisoformat(await attempt.run.once(attempt.key(run_id, "start"), now))

    async def on_tool_execute_error(
        self,
        ctx: RunContext[AgentDepsT],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        error: Exception,
    ) -> Any:
        """Lets effects beside a call that has failed end, also if the call isn't kept. The run would cut them off."""
        if (attempt := current()) is not None:
            await attempt.run._others_end()
        return await super().on_tool_execute_error(ctx, call=call, tool_def=tool_def, args=args, error=error)


def now() -> str:
    """Returns the time, as `run.once` keeps it."""
    return datetime.now(UTC).isoformat()
