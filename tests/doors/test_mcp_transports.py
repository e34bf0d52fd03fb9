"""`outbox mcp` as a real process: by stdio, where nothing but the protocol is on stdout, and by HTTP, where not all come in."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from apps.mcp_pipelines import drafts
from kit import forked
from kit.commands import Outbox
from kit.databases import make_database
from kit.pipelines import deployed, drain, value
from kit.servers import DEADLINE, PostgresServer, Process, wait_for
from kit.talking import ask, command, refused, said, talk
from outbox.database import migrations
from outbox.mcp import http_app, mcp_server
from outbox.operations import sessions

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
TOKEN = "a-token-that-nobody-guesses"
DRAFTS = ("--app", "apps.mcp_pipelines:drafts")


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """Imports the SDK once, which takes most of the time of a server that starts."""
    forked.imports("outbox.commands.mcp", "outbox.mcp.stdio", "outbox.mcp.http", "uvicorn")


# stdio


def test_a_client_talks_to_the_command_by_stdio(conn: Conn, dsn: str, spawn: Spawn) -> None:
    deployed(conn, drafts)
    spawn("worker", *DRAFTS)

    async def call(client: Client) -> Any:
        assert "status" in {tool.name for tool in (await client.list_tools()).tools}
        return await said(client, "drafts", topic="tea", words=1)

    made = talk(command(dsn, *DRAFTS, "--tool", "drafts", "--as", "helper"), call)
    assert made["metadata"]["text"] == "tea "
    assert value(conn, "SELECT actor FROM outbox.state_changes WHERE version = 1") == "helper"


def rpc(id_: int, method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}).encode() + b"\n"


HELLO = rpc(
    1, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "test", "version": "1"}
) + b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n'  # fmt: skip


def test_nothing_but_the_protocol_is_on_stdout_whatever_the_application_and_the_data_say(conn: Conn, dsn: str) -> None:
    """The application prints while it is imported and when a call is validated; the data has line breaks."""
    deployed(conn, drafts)
    with Outbox(dsn).process("mcp", *DRAFTS, "--tool", "drafts", "--wait", "0") as process:
        assert process.stdin
        assert process.stdout
        topic = "a\nb\r\n\u2028\u2029\x85{"
        sent = (
            HELLO
            + b"this is no JSON\n"
            + rpc(2, "tools/call", name="drafts", arguments={"topic": topic, "entity_id": "d"})
        )
        process.stdin.write(
            sent + rpc(3, "tools/call", name="show_workflow", arguments={"entity_id": "d"}) + b"\xff\xfe\n"
        )
        process.stdin.flush()
        lines: dict[Any, Any] = {}
        while not {1, 2} <= set(lines):
            line = json.loads(process.stdout.readline())
            assert line["jsonrpc"] == "2.0"
            lines[line.get("id")] = line
        process.stdin.write(rpc(4, "tools/call", name="show_workflow", arguments={"entity_id": "d"}))
        process.stdin.flush()
        while 4 not in lines:
            line = json.loads(process.stdout.readline())
            lines[line.get("id")] = line
        process.stdin.close()  # its client has gone
        assert process.wait(DEADLINE) == 0
        assert all(json.loads(line)["jsonrpc"] for line in process.stdout.read().splitlines())
        assert process.stderr
        err = process.stderr.read().decode()
    assert json.loads(lines[4]["result"]["content"][0]["text"])["metadata"]["topic"] == topic
    assert "this module prints when it is imported" in err
    assert "and writes to the descriptor" in err
    assert "a validator prints" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_in_the_middle_of_a_call_without_a_traceback(
    conn: Conn, dsn: str, number: signal.Signals, code: int
) -> None:
    deployed(conn, drafts)
    with Outbox(dsn).process("mcp", *DRAFTS, "--tool", "drafts") as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(HELLO)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == 1
        process.stdin.write(rpc(2, "tools/call", name="drafts", arguments={"topic": "tea"}))
        process.stdin.flush()
        wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.workflow_states") == 1, what="it has started")
        process.send_signal(number)
        assert process.wait(DEADLINE) == code
        assert b"Traceback" not in process.stderr.read()


def test_a_client_that_goes_without_its_answer_is_no_failure(dsn: str) -> None:
    with Outbox(dsn).process("mcp") as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(HELLO)
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(rpc(2, "tools/list"))
        process.stdin.close()
        assert process.wait(DEADLINE) == 0
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_without_standard_input_or_output_it_says_so(dsn: str, closed: str) -> None:
    ours = command(dsn)
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m outbox mcp {closed}', sys.executable],
        env={**os.environ, **(ours.env or {})}, capture_output=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 1
    assert "standard input or output is closed" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_a_server_that_is_killed_in_a_call_leaves_the_workflow_to_the_workers(conn: Conn, dsn: str) -> None:
    deployed(conn, drafts)
    with Outbox(dsn).process("mcp", *DRAFTS, "--tool", "drafts") as process:
        assert process.stdin
        process.stdin.write(HELLO + rpc(2, "tools/call", name="drafts", arguments={"topic": "tea", "entity_id": "d"}))
        process.stdin.flush()
        wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.workflow_states") == 1, what="it has started")
        process.kill()
        process.wait(DEADLINE)
    drain(drafts, dsn)
    again = ask(mcp_server(dsn, tools={"drafts": drafts}), "drafts", topic="tea", entity_id="d")
    assert (again["status"], again["created"]) == ("DONE", False)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--tool", "drafts"], "there is no pipeline drafts: give its module with --app", 1),
        (["--tool", "posts", *DRAFTS], "there is no pipeline posts; --app has drafts", 1),
        (["--tool", "drafts=why", *DRAFTS], "'why' is the name of another tool", 1),
        (["--tool", "drafts=my tool", *DRAFTS], "'my tool' is no name of a tool", 1),
        (["--tool", "drafts=a", "--tool", "drafts=a", *DRAFTS], "two tools have the name 'a'", 1),
        (["--app", "apps.nothing"], "there is no module", 1),
        (["--as", ""], "by", 1),
        (["--http", "--host", "0.0.0.0"], "OUTBOX_MCP_TOKEN", 2),
        (["--http", "--host", "example.com"], "OUTBOX_MCP_TOKEN", 2),
        (["--http", "--allow-host", "shop.internal"], "OUTBOX_MCP_TOKEN", 1),
        (["--allow-host", "shop.internal"], "--allow-host goes with --http", 2),
        (["--wait", "-1"], "--wait", 2),
    ],
)
def test_wrong_usage_is_said_at_the_start(dsn: str, arguments: list[str], words: str, code: int) -> None:
    done = Outbox(dsn)("mcp", *arguments, code=code)
    assert done.out == ""
    assert words in done.err


def test_a_short_token_is_refused(dsn: str) -> None:
    done = Outbox(dsn)("mcp", "--http", "--port", "0", env={"OUTBOX_MCP_TOKEN": "hunter2"}, code=1)
    assert "16 or more" in done.err
    assert "hunter2" not in done.err


# The database


def test_a_database_that_is_down_or_frozen_is_an_error_of_the_tool_and_the_server_recovers(
    make_server: Callable[[str], PostgresServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "GRACE", 0.5)
    postgres = make_server("18")
    dsn = f"{make_database(postgres, 'shop')}?connect_timeout=2"
    migrations.apply(dsn)
    server = mcp_server(dsn, operate=True, statement_timeout=1)

    async def recovered(client: Client) -> None:
        for _ in range(50):
            if not (await client.call_tool("status", {})).is_error:
                return
        raise AssertionError(await refused(client, "status"))

    async def call(client: Client) -> None:
        await said(client, "status")
        await asyncio.to_thread(postgres.stop)
        assert "Postgres can't be reached" in await refused(client, "status")
        down = await refused(client, "pause_stage", stage="enrich")
        assert "Postgres can't be reached" in down
        assert "It may have been done" in down
        await asyncio.to_thread(postgres.start)
        await recovered(client)
        postgres.send(signal.SIGSTOP)
        try:
            frozen = await refused(client, "status")
            assert "given up" in frozen or "can't be reached" in frozen
        finally:
            postgres.send(signal.SIGCONT)
        await recovered(client)

    talk(server, call)


def test_a_call_that_waits_outlives_a_restart_of_the_database(make_server: Callable[[str], PostgresServer]) -> None:
    postgres = make_server("18")
    dsn = make_database(postgres, "shop")
    migrations.apply(dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        deployed(conn, drafts)
    server = mcp_server(dsn, tools={"drafts": drafts}, wait=DEADLINE)

    async def call(client: Client) -> Any:
        started = asyncio.Event()

        async def progress(done: float, total: float | None, message: str | None) -> None:
            started.set()

        calling = asyncio.ensure_future(
            client.call_tool("drafts", {"topic": "tea", "words": 1}, progress_callback=progress)
        )
        await started.wait()
        await asyncio.to_thread(postgres.stop)
        assert "can't be reached" in await refused(client, "status")
        await asyncio.to_thread(postgres.start)
        await asyncio.to_thread(drain, drafts, dsn)
        return json.loads((await calling).content[0].text)  # type: ignore[union-attr]

    assert talk(server, call)["metadata"]["text"] == "tea "


@pytest.mark.parametrize("what", ["nothing listens", "no schema", "unreadable"])
def test_no_password_is_in_an_error_or_in_the_log(empty_dsn: str, what: str, tmp_path: Path) -> None:
    canary = "s3cr3t-canary"
    dsn = {
        "nothing listens": f"postgresql://me:{canary}@127.0.0.1:1/x",
        "no schema": empty_dsn.replace("@", f":{canary}@", 1),
        "unreadable": f"postgresql://me:{canary}@127.0.0.1:port/x",
    }[what]
    if what == "unreadable":
        with Outbox(dsn).process("mcp") as process:
            ended = process.done(b"")
        assert ended.code != 0
        assert canary not in ended.out + ended.err
        return
    log = tmp_path / "err"
    with log.open("wb") as err, Outbox(dsn).process("mcp", "--log-level", "debug", stderr=err) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(HELLO + rpc(2, "tools/call", name="list_workflows", arguments={}))
        process.stdin.flush()
        answers = [process.stdout.readline() for _ in range(2)]
        process.stdin.close()
        assert process.wait(DEADLINE) == 0
    told = json.loads(answers[1])["result"]
    assert told["isError"]
    assert ("can't be reached" if what == "nothing listens" else "outbox migrate") in told["content"][0]["text"]
    assert canary not in answers[1].decode() + log.read_text()


# HTTP


def address(process: Process) -> str:
    assert process.popen.stdout
    return process.popen.stdout.readline().decode().strip()


def post(url: str, **headers: str) -> int:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    sent = {"accept": "application/json, text/event-stream", **headers}
    return httpx2.post(url, json=body, headers=sent, timeout=DEADLINE).status_code


def test_this_machine_talks_to_it_by_http_and_pages_of_others_do_not(shop: Conn, dsn: str, spawn: Spawn) -> None:
    url = address(spawn("mcp", "--http", "--port", "0"))

    async def two_at_once(client: Client) -> list[Any]:
        async with Client(url) as other:
            return [await said(each, "why", entity_id="done") for each in (client, other)]

    assert [each["cause"] for each in talk(url, two_at_once)] == ["finished", "finished"]
    assert post(url, host="evil.example") == 421
    assert post(url, host="localhost.evil.example:80") == 421
    assert post(url, origin="https://evil.example") == 403
    assert post(url, origin="null") == 403
    assert post(url, **{"x-forwarded-for": "10.0.0.1"}) == 403
    assert post(url, origin="http://localhost:3000") not in (401, 403, 421)


def test_with_a_token_nobody_comes_in_without_it(shop: Conn, dsn: str, spawn: Spawn) -> None:
    process = spawn(
        "mcp", "--http", "--port", "0", "--host", "0.0.0.0", "--allow-host", "shop.internal", env={"OUTBOX_MCP_TOKEN": TOKEN}
    )  # fmt: skip
    url = address(process).replace("0.0.0.0", "127.0.0.1")
    assert post(url) == 401
    assert post(url, authorization="Bearer wrong") == 401
    assert post(url, authorization=f"Basic {TOKEN}") == 401
    known = {"authorization": f"Bearer {TOKEN}"}
    assert post(url, **known, host="evil.example") == 421
    assert post(url, **known, origin="https://evil.example") == 403
    assert post(url, **known, host="shop.internal") not in (401, 403, 421)
    assert post(url, **known, host="shop.internal:8443") not in (401, 403, 421)

    async def call() -> Any:
        async with (
            httpx2.AsyncClient(headers=known) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            return await said(client, "why", entity_id="done")

    assert asyncio.run(asyncio.wait_for(call(), DEADLINE))["cause"] == "finished"
    with pytest.raises((MCPError, httpx2.HTTPError, ExceptionGroup)):
        talk(url, lambda client: said(client, "status"))
    assert TOKEN not in process.text()


def test_a_request_that_is_too_large_is_refused_and_the_server_goes_on(shop: Conn, dsn: str, spawn: Spawn) -> None:
    url = address(spawn("mcp", "--http", "--port", "0"))
    sent = httpx2.post(url, content=b"x" * 5_000_000, headers={"content-type": "application/json"}, timeout=DEADLINE)
    assert sent.status_code == 413
    assert ask(url, "why", entity_id="done")["cause"] == "finished"


def test_a_signal_ends_it_in_the_middle_of_a_call_of_http(conn: Conn, dsn: str, spawn: Spawn) -> None:
    deployed(conn, drafts)
    process = spawn("mcp", "--http", "--port", "0", *DRAFTS, "--tool", "drafts")
    url = address(process)

    async def call(client: Client) -> int:
        calling = asyncio.ensure_future(client.call_tool("drafts", {"topic": "tea"}))
        count = "SELECT count(*) FROM outbox.workflow_states"
        await asyncio.to_thread(wait_for, lambda: value(conn, count) == 1, what="it has started")
        process.send(signal.SIGTERM)
        ended = await asyncio.to_thread(process.wait)
        calling.cancel()
        return ended

    assert talk(url, call) in (0, -signal.SIGTERM)
    assert "Traceback" not in process.text()


def test_an_application_mounts_it(dsn: str) -> None:
    app = http_app(mcp_server(dsn), token=TOKEN, hosts=["shop.example"])
    assert [getattr(route, "path", None) for route in app.routes] == ["/mcp"]
