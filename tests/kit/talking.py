"""Talks to a server of the Model Context Protocol as the SDK's own client does."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from mcp import Client, StdioServerParameters

from kit.pooler import way_env
from kit.servers import DEADLINE

T = TypeVar("T")


def talk(server: Any, work: Callable[[Client], Awaitable[T]], **options: Any) -> T:
    """Returns what `work` returns, which is given a connected client."""

    async def run() -> T:
        async with Client(server, **options) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(run(), DEADLINE))


async def said(client: Client, tool: str, **arguments: Any) -> Any:
    """Returns the result of a tool, read as JSON."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return json.loads(text_of(result))


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """Returns what a tool says that must fail, as an error of the tool and not of the protocol."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.content
    return text_of(result)


def text_of(result: Any) -> str:
    (content,) = result.content
    text: str = content.text
    return text


def ask(server: Any, tool: str, **arguments: Any) -> Any:
    """Returns the result of one call."""
    return talk(server, lambda client: said(client, tool, **arguments))


def ask_in_vain(server: Any, tool: str, **arguments: Any) -> str:
    """Returns the error of one call."""
    return talk(server, lambda client: refused(client, tool, **arguments))


def command(dsn: str, *arguments: str, **env: str) -> StdioServerParameters:
    """Returns how a client starts `outbox mcp` as a process of its own."""
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    return StdioServerParameters(
        command=sys.executable, args=["-m", "outbox", "mcp", *arguments],
        env={**way_env(dsn), "PYTHONPATH": path, "TMPDIR": os.environ["TMPDIR"], **env},
    )  # fmt: skip
