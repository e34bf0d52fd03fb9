"""Defines the agent that every engine runs, and the world in which its calls happen. Imports only Pydantic AI.

`python -m bench.kills.ENGINE DSN WORLD KILLED_AT`: the process submits the one run of the agent if the file WORLD isn't
there, goes on with it otherwise, and ends when the run has ended. At the point KILLED_AT it kills itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

REQUESTS = ("request 1", "request 2", "request 3")
READS = ("look up 1", "look up 2")
WRITE = "charge"
ASKED = "asked"
"""Said to the world when a person is asked whether the charge has happened."""

END = "before the end"
POINTS = [
    f"{side} {call}" for call in (REQUESTS[0], *READS, REQUESTS[1], WRITE, REQUESTS[2]) for side in ("before", "after")
] + [END]
"""Before and after each call happens in the world, and when the agent has its answer, but the engine doesn't."""

RESPONSES: list[list[ToolCallPart | TextPart]] = [
    [ToolCallPart("look_up", {"order": order}, f"look_up_{order}") for order in (1, 2)],
    [ToolCallPart("charge", {"cents": 900}, "charge_1")],
    [TextPart("done")],
]


class World:
    """What has happened outside of the engine: a line of a file for each call."""

    def __init__(self, file: Path, killed_at: str = "") -> None:
        self._file = file
        self._killed_at = killed_at

    def happened(self) -> list[str]:
        return self._file.read_text().splitlines()

    def say(self, what: str) -> None:
        with self._file.open("a") as file:
            file.write(f"{what}\n")
            file.flush()
            os.fsync(file.fileno())

    def point(self, name: str) -> None:
        """Kills this process if this is where it is to die."""
        if name == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    async def call(self, what: str, seconds: float = 0.02) -> None:
        self.point(f"before {what}")
        await asyncio.sleep(seconds)
        self.say(what)
        self.point(f"after {what}")


Tool = Callable[..., Coroutine[Any, Any, str]]


def agent(
    world: World,
    *capabilities: Any,
    kept: Callable[[Tool], Tool] = lambda tool: tool,
    of_write: dict[str, Any] | None = None,
) -> Agent[None, str]:
    """Returns the agent. `kept` decorates its tools, and `of_write` is the metadata of the tool that writes."""

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        await world.call(REQUESTS[turn])
        return ModelResponse(parts=RESPONSES[turn])

    async def look_up(order: int) -> str:
        # The second one takes longer, so the first one's result may have been kept when it happens.
        await world.call(READS[order - 1], seconds=0.1 * order)
        return "shipped"

    async def charge(cents: int) -> str:
        await world.call(WRITE)
        return "paid"

    made = Agent(FunctionModel(respond), name="support", capabilities=capabilities)
    made.tool_plain(kept(look_up))
    made.tool_plain(metadata=of_write)(kept(charge))
    return made


def run(main: Callable[[str, World, bool], Coroutine[Any, Any, None]]) -> None:
    """Runs an engine's `main` with the DSN, the world, and whether the agent's run is to be submitted."""
    dsn, name, killed_at = sys.argv[1:]
    file = Path(name)
    is_new = not file.exists()
    file.touch()

    async def whole() -> None:
        await main(dsn, World(file, killed_at), is_new)
        os._exit(0)  # how an engine winds down is not measured

    asyncio.run(whole())
