"""docs/mcp.md and examples/README.md: what they say is typed here."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import httpx2
import psycopg
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from kit.servers import DEADLINE
from kit.talking import command, said, talk
from outbox.commands.mcp import mcp_command
from outbox.mcp import mcp_server

Conn = psycopg.Connection[Any]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "mcp.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def block(language: str) -> str:
    return next(text for found, text in BLOCKS if found == language)


def test_what_an_editor_is_told_starts_a_server_that_looks(conn: Conn, dsn: str) -> None:
    told = json.loads(block("json"))["mcpServers"]["outbox"]
    assert (told["command"], list(told["env"])) == ("outbox", ["OUTBOX_DSN"])
    ours = command(dsn)
    server = StdioServerParameters(command=sys.executable, args=["-m", "outbox", *told["args"]], env=ours.env)

    async def status(client: Client) -> Any:
        return await said(client, "status")

    assert talk(server, status)["overview"] == []


def test_the_table_has_every_tool_with_what_it_needs(dsn: str) -> None:
    async def names(client: Client) -> set[str]:
        return {tool.name for tool in (await client.list_tools()).tools}

    looks = talk(mcp_server(dsn), names)
    needs = {**dict.fromkeys(looks, ""), "decide": "`--decide-as`"}
    for name in talk(mcp_server(dsn, operate=True), names) - looks:
        needs[name] = "`--operate`"
    assert dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|", PAGE, re.MULTILINE)) == needs


def test_every_option_of_the_page_is_one_of_the_command() -> None:
    options = {name for param in mcp_command.params if isinstance(param, click.Option) for name in param.opts}
    typed = re.findall(r"outbox mcp (.*)", "\n".join(text for language, text in BLOCKS if language == "sh"))
    named = set(re.findall(r"--[a-z-]+", "\n".join(line.partition("#")[0] for line in typed)))
    assert len(named) >= 6
    assert named <= options


def test_an_application_mounts_it_as_printed(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    monkeypatch.setenv("OUTBOX_MCP_TOKEN", "a-token-that-nobody-guesses")
    found: dict[str, Any] = {}
    exec(compile(block("python"), "server.py", "exec", dont_inherit=True), found)
    app = found["app"]

    async def call() -> Any:
        transport = httpx2.ASGITransport(app=app)
        known = {"authorization": "Bearer a-token-that-nobody-guesses"}
        async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport) as anybody:
            refused = await anybody.post("https://shop.example/outbox/mcp", json={})
            assert refused.status_code == 401
            async with (
                httpx2.AsyncClient(transport=transport, headers=known) as http,
                Client(streamable_http_client("https://shop.example/outbox/mcp", http_client=http)) as client,
            ):
                return await said(client, "status")

    assert asyncio.run(asyncio.wait_for(call(), DEADLINE))["overview"] == []


def test_every_example_is_in_the_table_of_examples() -> None:
    table = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    there = {path.name for path in (ROOT / "examples").iterdir() if path.is_dir() and any(path.glob("*.*"))}
    linked = {link.split("/")[0] for link in re.findall(r"\]\(((?!\.\.)[^)]+)\)", table)}
    assert linked == there - {"__pycache__"}
    for link in re.findall(r"\]\(([^)#]+)\)", table):
        assert (ROOT / "examples" / link).exists(), link
