"""The command line: what each command says and changes, its exit codes, and what it says when something is wrong."""

from __future__ import annotations

import itertools
import json
import os
import pty
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from apps.cli import posts, tickets
from kit.commands import Outbox
from kit.databases import OWNER, make_database
from kit.pipelines import Post, deployed, drain, status_of, value
from kit.servers import DEADLINE, PostgresServer, free_port, wait_for
from kit.servers import Process as Spawned
from outbox.cli import main
from outbox.database import schema

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Spawned]

COMMANDS = ["dev", "migrate", "deploy", "drop", "worker", "submit", "status", "list", "show", "set-status", "cancel", "erase", "dead", "retry", "effects", "pause", "resume", "approvals", "approve",
            "reject", "decide", "delegate", "delegations", "signal", "schedules", "relay", "parked", "doctor", "ui", "mcp", "psql", "demo"]  # fmt: skip
APP = "apps.cli:posts"
CANARY = "canary-s3cret"


# help and wrong usage


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    said = Outbox(None)(command, "--help").out
    assert said.startswith("Usage: ")
    assert "--help" in said
    assert len(said.splitlines()) > 5


def test_help_names_every_command() -> None:
    for arguments in (["--help"], ["-h"]):
        said = Outbox(None)(*arguments).out
        assert all(f"\n  {command} " in said for command in COMMANDS)
    assert set(main.list_commands(None)) == set(COMMANDS), "a new command needs its tests"  # type: ignore[arg-type]


def test_the_list_of_commands_cuts_no_sentence() -> None:
    said = Outbox(None)("--help", env={"COLUMNS": "80"}).out
    assert [line for line in said.splitlines()[1:] if line.endswith("...")] == []


def test_the_version_is_told() -> None:
    assert Outbox(None)("--version").out.split()[-1][0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-command"], "No such command"),
        (["status", "--no-such-option"], "No such option"),
        (["status", "--watch", "--json"], "exclude each other"),
        (["show"], "Missing argument 'ENTITY'"),
        (["set-status", "a"], "Missing argument 'STATUS'"),
        (["retry"], "give an ENTITY or --all"),
        (["retry", "a", "--all"], "give an ENTITY or --all"),
        (["submit"], "Missing option '--pipeline'"),
        (["worker", "--concurrency", "0"], "--concurrency"),
        (["worker", "--lease", "nan"], "--lease"),
        (["worker", "--log", "xml"], "--log"),
        (["worker", "--keep-dead", "-1"], "--keep-dead"),
        (["worker", "--keep-history", "inf"], "--keep-history"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(outbox: Outbox, arguments: list[str], words: str) -> None:
    done = outbox(*arguments, code=2)
    assert done.out == ""
    assert words in done.err


# migrate


def test_migrate_check_names_what_is_pending_and_migrate_applies_it(empty_dsn: str) -> None:
    outbox = Outbox(empty_dsn)
    names = [migration.name for migration in schema.all_migrations()]
    assert outbox("migrate", "--check", code=1).out.splitlines() == [f"pending {name}" for name in names]
    assert outbox("migrate", "--check", code=1).out, "looking has changed nothing"
    assert outbox("migrate").out.splitlines() == [*(f"applied {name}" for name in names), "the schema is up to date"]
    assert outbox("migrate").out == "the schema is up to date\n"
    assert outbox("migrate", "--check").out == "the schema is up to date\n"


def test_migrate_sql_prints_a_script_that_makes_the_schema(empty_dsn: str) -> None:
    outbox = Outbox(empty_dsn)
    script = outbox("migrate", "--sql").out
    outbox("migrate", "--check", code=1)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(script.encode())
    outbox("migrate", "--check")
    again = outbox("migrate", "--sql").out
    assert again == "-- nothing is pending\n", "which psql takes, too"


def test_migrate_names_what_a_later_release_has_applied(outbox: Outbox, conn: Conn) -> None:
    conn.execute("INSERT INTO outbox.schema_migrations (name) VALUES ('9999_from_the_future')")
    done = outbox("migrate")
    assert "9999_from_the_future" in done.err
    assert "later release" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["deploy", "--app", APP],
        ["worker", "--app", APP, "--drain"],
        ["submit", "--pipeline", "posts"],
        ["status"],
        ["show", "a"],
        ["set-status", "a", "B"],
        ["dead"],
        ["retry", "--all"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_the_schema_every_command_names_the_one_that_makes_it(
    empty_dsn: str, arguments: list[str], tmp_path: Path
) -> None:
    with Outbox(empty_dsn).process(*arguments) as process:
        done = process.done(b"")
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert "Run: outbox migrate" in line


# deploy


def test_deploy_check_tells_what_deploy_will_do_and_changes_nothing(outbox: Outbox, conn: Conn) -> None:
    told = outbox("deploy", "--app", APP, "--check").out
    assert "posts: new status RECEIVED (taken by enrich)\n" in told
    assert value(conn, "SELECT count(*) FROM outbox.pipelines") == 0
    assert outbox("deploy", "--app", APP).out == told
    assert value(conn, "SELECT count(*) FROM outbox.pipelines") == 1
    assert outbox("deploy", "--app", APP).out == "posts: nothing to change\n"
    assert outbox("deploy", "--app", APP, "--check").out == "posts: nothing to change\n"


def test_deploy_takes_several_pipelines_at_once_and_the_app_from_the_environment(outbox: Outbox, conn: Conn) -> None:
    outbox("deploy", env={"OUTBOX_APP": "apps.cli:both"})
    assert conn.execute("SELECT pipeline FROM outbox.pipelines ORDER BY 1").fetchall() == [("posts",), ("tickets",)]


def test_deploy_that_would_strand_workflows_is_refused_with_the_list(outbox: Outbox, shop: Conn) -> None:
    before = shop.execute("SELECT * FROM outbox.routes ORDER BY 1, 2").fetchall()
    told = [
        f"posts: refused: this version no longer knows status {status}: 1 workflow is in it. Keep it, rename it with "
        f'posts.rename("{status}", …), or move them on first'
        for status in ("ENRICHED", "WAITING_FOR_REVIEW")
    ]
    checked = outbox("deploy", "--app", "apps.cli:hasty", "--check", code=1)
    assert (checked.out, checked.err.splitlines()) == ("", told)
    refused = outbox("deploy", "--app", "apps.cli:hasty", code=1)
    assert refused.err.splitlines() == [*told, 'outbox: pipeline "posts" was not deployed, and nothing of it changed']
    assert shop.execute("SELECT * FROM outbox.routes ORDER BY 1, 2").fetchall() == before


# finding the application

BROKEN_APPS = {
    "no_such_module:app": "there is no module 'no_such_module'",
    "apps.cli:no_such_name": "apps.cli has no 'no_such_name'",
    "apps.cli:posts.no_such_name": "apps.cli has no 'posts.no_such_name'",
    "apps.cli:number": "is of type int: it must be a Pipeline",
    "json": "a module without a Pipeline",
    "broken_shop:app": "ZeroDivisionError: division by zero (broken_shop.py:1",
    "needy_shop:app": "No module named 'no_such_dependency'",
    "torn_shop:app": "SyntaxError",
    "leaving_shop:app": "SystemExit",
    ":app": "write it as module:object",
    "..": "write it as module:object",
    "": "give --app module:object, or set OUTBOX_APP",
}


@pytest.mark.parametrize(("app", "words"), BROKEN_APPS.items(), ids=[name or "none" for name in BROKEN_APPS])
def test_an_application_that_cannot_be_loaded_is_one_line_that_says_why(
    outbox: Outbox, app: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_shop.py").write_text("1 / 0\n")
    (tmp_path / "needy_shop.py").write_text("import no_such_dependency\n")
    (tmp_path / "torn_shop.py").write_text("def\n")
    (tmp_path / "leaving_shop.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = outbox.fails("deploy", "--app", app)
    assert words in line


def test_the_application_is_found_in_the_current_folder(
    outbox: Outbox, conn: Conn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corner_shop.py").write_text(
        "from outbox import Pipeline\norders = Pipeline('orders', initial='NEW')\n"
    )
    with outbox.process("deploy", "--app", "corner_shop", cwd=tmp_path) as process:
        done = process.done()
    assert done.code == 0, done.err
    assert value(conn, "SELECT pipeline FROM outbox.pipelines") == "orders"


# worker


def test_worker_drain_runs_what_is_due_and_exits_0_with_one_info_line_a_batch(
    outbox: Outbox, conn: Conn, dsn: str
) -> None:
    deployed(conn, posts)
    posts.submit_many(conn, ((f"e{n}", Post()) for n in range(50)))
    with outbox.process("worker", "--app", APP, "--drain") as process:
        done = process.done()
    assert (done.code, done.out) == (0, ""), done.err
    assert value(conn, "SELECT workflows FROM outbox.overview WHERE status = 'COMPLETED'") == 50
    lines = done.err.splitlines()
    batches = [line for line in lines if " ms" in line]
    assert 3 <= len(batches) < 50, "a line a batch, not a line a job"
    assert all(" INFO " in line for line in lines)
    assert "150 done" in lines[-1]


def test_worker_log_json_is_one_object_a_line(outbox: Outbox, conn: Conn) -> None:
    deployed(conn, posts)
    posts.submit_many(conn, [("calm", Post()), ("ill", Post(content="rejected\n\x1b[31m"))])
    with outbox.process("worker", "--app", APP, "--drain", "--log", "json") as process:
        done = process.done()
    assert (done.code, done.out) == (0, "")
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert all({"ts", "level", "logger", "message"} <= line.keys() for line in lines)
    assert {line["level"] for line in lines} == {"INFO", "ERROR"}, "a death is an error"
    assert any("dead" in line["message"] for line in lines)
    assert "\x1b" not in done.err


def test_worker_serves_only_the_stages_that_it_is_told(outbox: Outbox, conn: Conn) -> None:
    deployed(conn, posts)
    posts.submit(conn, "a", Post())
    with outbox.process("worker", "--app", APP, "--drain", "--stage", "enrich") as process:
        assert process.done().code == 0
    assert status_of(conn, "a") == "ENRICHED"
    with outbox.process("worker", "--app", APP, "--drain", "--stage", "decide", "--stage", "posts.act") as process:
        assert process.done().code == 0
    assert status_of(conn, "a") == "COMPLETED"


def refused(outbox: Outbox, *arguments: str) -> str:
    """Start a worker that must refuse to; return the one line that says why."""
    with outbox.process("worker", *arguments) as process:
        done = process.done()
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    return line


def test_worker_refuses_an_unknown_stage_and_names_those_that_there_are(outbox: Outbox) -> None:
    line = refused(outbox, "--app", APP, "--stage", "enrihc")
    assert "'enrihc'" in line
    assert "posts.enrich, posts.decide, posts.act" in line


def test_worker_refuses_a_pipeline_that_is_not_deployed_and_names_the_command(outbox: Outbox, conn: Conn) -> None:
    line = refused(outbox, "--app", APP)
    assert 'pipeline "posts" is not deployed' in line
    assert "outbox deploy" in line


def test_worker_refuses_a_pipeline_that_is_deployed_differently(outbox: Outbox, conn: Conn) -> None:
    outbox("deploy", "--app", "apps.cli:hasty")
    line = refused(outbox, "--app", APP)
    assert "deployed" in line
    assert "outbox deploy" in line


def test_worker_refuses_a_pipeline_without_stages(outbox: Outbox, conn: Conn) -> None:
    deployed(conn, tickets)
    assert "there is no stage to work on" in refused(outbox, "--app", "apps.cli:tickets")


# status


def read_until(fd: int, words: str, timeout: float = DEADLINE) -> str:
    """Read from a terminal or pipe until the words have come."""
    deadline, seen = time.monotonic() + timeout, b""
    while words.encode() not in seen:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{words!r} has not come within {timeout:g} s; there is {seen!r}"
        seen += os.read(fd, 65536)
    return seen.decode(errors="replace")


def test_status_watch_redraws_on_a_terminal_and_ctrl_c_ends_it_quietly(outbox: Outbox, shop: Conn) -> None:
    master, slave = pty.openpty()
    try:
        with outbox.process("status", "--watch", stdout=slave, stderr=subprocess.PIPE) as process:
            read_until(master, "RECEIVED")
            posts.submit_many(shop, ((f"m{n}", Post()) for n in range(776)))
            read_until(master, "777")
            process.interrupt()
            done = process.done()
    finally:
        os.close(master)
        os.close(slave)
    assert done.code in (0, 130)
    assert done.err == ""


def test_ctrl_c_ends_status_watch_in_the_middle_of_a_query_too(
    outbox: Outbox, shop: Conn, connect: Callable[..., Conn]
) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox cli' AND wait_event_type = 'Lock'"
    other = connect(autocommit=False)
    other.execute("LOCK TABLE outbox.workers")
    with outbox.process("status", "--watch") as process:
        wait_for(lambda: value(shop, waiting), what="it waits in a query")
        process.interrupt()
        done = process.done()
    assert (done.code, done.err) == (0, "")


# what is in the data can't harm the terminal

EVIL = "a\x1b[31m\nb\x9b2J\x07\u202ec"


def test_control_characters_in_data_never_reach_the_terminal(outbox: Outbox, shop: Conn, dsn: str) -> None:
    posts.submit(shop, EVIL, Post(content=f"rejected {EVIL}"))
    drain(posts, dsn)
    shop.execute("INSERT INTO outbox.workers (name, stages, lease) VALUES (%s, %s, '1 hour')", [EVIL, [EVIL]])
    shop.execute("UPDATE outbox.dead_jobs SET error = error || %s", [EVIL])
    commands = [
        ["show", EVIL],
        ["show", EVIL, "--json"],
        ["dead"],
        ["dead", "--json"],
        ["status"],
        ["status", "--json"],
        ["retry", EVIL],
        ["doctor"],
        ["doctor", "--json"],
    ]
    refused = [
        ["set-status", EVIL, EVIL],
        ["set-status", EVIL, "COMPLETED", "--reason", EVIL, "--by", EVIL],
        ["show", f"no{EVIL}"],
        ["show", "a", "--pipeline", EVIL],
        ["retry", f"no{EVIL}"],
        ["deploy", "--app", f"apps.cli:{EVIL}"],
        ["submit", "--pipeline", EVIL],
        ["submit", "--pipeline", "posts", f"/{EVIL}"],
        [EVIL],
    ]
    for arguments in (*commands, *refused):
        done = outbox(*arguments, code=None, input='{"entity_id": "x"}')
        assert done.out + done.err
        wrong = [char for char in done.out + done.err if not char.isprintable() and char != "\n"]
        assert not wrong, (arguments, wrong)
        assert (done.code != 0) == (arguments in refused or arguments[0] == "doctor")


def test_json_keeps_data_exactly(outbox: Outbox, conn: Conn) -> None:
    deployed(conn, posts)
    odd = EVIL + "😀 [bold]%s{}\\"
    posts.submit(conn, odd, Post(content=odd))
    found = outbox("show", odd, "--json").json
    assert (found["entity_id"], found["metadata"]["content"]) == (odd, odd)


def test_a_terminal_that_knows_only_ascii_is_no_reason_to_break(outbox: Outbox, shop: Conn) -> None:
    posts.submit(shop, "größe😀", Post())
    for arguments in (["doctor"], ["show", "größe😀"], ["show", "größe😀", "--json"], ["status"]):
        with outbox.process(*arguments, env={"PYTHONIOENCODING": "ascii"}) as process:
            done = process.done()
        assert done.err == ""
        assert done.out.isascii()


def test_markup_in_data_is_shown_as_it_is(outbox: Outbox, conn: Conn) -> None:
    deployed(conn, posts)
    posts.submit(conn, "[red]x[/red]", Post(content="[link=http://x]y[/nonsense]"))
    said = outbox("show", "[red]x[/red]").out
    assert "[red]x[/red] in posts" in said
    assert "[link=http://x]y[/nonsense]" in said


@pytest.mark.parametrize("arguments", [["show", "\udcff"], ["set-status", "new", "\udcff"], ["dead", "--pipeline", "\udcff"],
                                       ["set-status", "new", "X", "--reason", "\udcff"], ["deploy", "--app", "\udcff"],
                                       ["submit", "--pipeline", "\udcff"], ["--dsn", "host=\udcff", "status"]])  # fmt: skip
def test_arguments_that_are_not_utf8_are_refused_in_one_line(outbox: Outbox, shop: Conn, arguments: list[str]) -> None:
    with outbox.process(*arguments) as process:
        done = process.done(b'{"entity_id": "x"}')
    assert done.code in (1, 2)
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1, done.err


# the database can't be reached


def dsns_of(port: int, password: str = CANARY, extra: str = "") -> list[str]:
    """The same database as a URL and as keywords."""
    return [
        f"postgresql://{OWNER}:{password}@127.0.0.1:{port}/app{'?' + extra if extra else ''}",
        f"host=127.0.0.1 port={port} user={OWNER} password={password} dbname=app {extra}",
    ]


def test_a_server_that_is_not_there_is_one_line_that_says_where(outbox: Outbox) -> None:
    port = free_port()
    for dsn in dsns_of(port):
        for arguments in (["status"], ["migrate"], ["deploy", "--app", APP]):
            line = Outbox(dsn).fails(*arguments)
            assert CANARY not in line
            assert str(port) in line
            assert "refused" in line
        line = refused(Outbox(dsn), "--app", APP, "--drain")
        assert CANARY not in line
        assert str(port) in line


# libpq quotes what it can't read, and reads the part after an unescaped / or @ as host, port or database.
TORN = [
    f"postgresql://user:{CANARY}@ho st/%zz",
    f"postgresql://user:{CANARY}/x@127.0.0.1/db",
    f"postgresql://user:p@{CANARY}@127.0.0.1/db",
    f"postgresql://user:p@ss/{CANARY}@127.0.0.1/db",
    f"host=127.0.0.1 password={CANARY} nonsense=1",
    f"host=127.0.0.1 password='{CANARY}",
    f"user:{CANARY}@host",
    CANARY,
]


@pytest.mark.parametrize("dsn", TORN)
def test_a_dsn_that_cannot_be_read_is_one_line_without_the_password(dsn: str) -> None:
    for outbox, arguments in ((Outbox(dsn), ["status"]), (Outbox(None), ["--dsn", dsn, "migrate"])):
        line = outbox.fails(*arguments)
        assert CANARY not in line
    line = refused(Outbox(dsn), "--app", APP)
    assert CANARY not in line
    assert "DSN" in line


def test_a_host_that_never_answers_is_given_up_on(outbox: Outbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        dsn = dsns_of(deaf.getsockname()[1], extra="connect_timeout=1")[0]
        for arguments in (["status"], ["worker", "--app", APP, "--drain"]):
            with Outbox(dsn).process(*arguments) as process:
                done = process.done()
            assert (done.code, done.out) == (1, "")
            (line,) = done.err.splitlines()
            assert CANARY not in line
            assert "timeout" in line
        assert connected(deaf) == 3, (
            "as it answers nobody: they ended by themselves, and have not tried again and again"
        )


def connected(server: socket.socket) -> int:
    """Return how many have connected to a server that has taken none of them yet."""
    server.setblocking(False)
    for count in itertools.count():
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return count
    raise AssertionError


@pytest.fixture(scope="module")
def strict_server() -> Iterator[PostgresServer]:
    """A server that asks the owner for a password."""
    server = PostgresServer()
    try:
        rules = server.data / "pg_hba.conf"
        rules.write_text(f"host all {OWNER} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")
        server.start()
        with server.admin() as admin:
            admin.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{CANARY}'")
        make_database(server, "app")
        yield server
    finally:
        server.remove()


def test_the_password_is_never_shown_by_what_succeeds(strict_server: PostgresServer) -> None:
    for dsn in dsns_of(strict_server.port):
        outbox = Outbox(dsn)
        said = [
            outbox("migrate"),
            outbox("deploy", "--app", APP),
            outbox("submit", "--pipeline", "posts", input='{"entity_id": "a"}\n{"entity_id": "b"}'),
            outbox("status", "--json"),
            outbox("show", "a"),
            outbox("parked", "--json"),
            outbox("parked", "--retry", "9", code=1),
            outbox("doctor", code=1),
            outbox("set-status", "a", "NOWHERE", code=1),
        ]
        with outbox.process("worker", "--app", APP, "--drain", "--log", "json") as process:
            said.append(process.done())
        assert said[-1].code == 0
        assert said[-1].err
        for done in said:
            assert CANARY not in done.out + done.err


def test_a_wrong_password_is_one_line_without_it(strict_server: PostgresServer) -> None:
    for dsn in dsns_of(strict_server.port, password=f"{CANARY}-wrong"):
        line = Outbox(dsn).fails("status")
        assert "password authentication failed" in line
        assert CANARY not in line
        for style in ("text", "json"):
            line = refused(Outbox(dsn), "--app", APP, "--log", style)
            assert "password authentication failed" in line
            assert CANARY not in line


def test_a_worker_that_loses_its_server_does_not_log_the_password(
    strict_server: PostgresServer, tmp_path: Path
) -> None:
    dsn = dsns_of(strict_server.port)[0]
    Outbox(dsn)("migrate")
    Outbox(dsn)("deploy", "--app", APP)
    with Outbox(dsn).process("worker", "--app", APP, "--log", "json") as process:
        assert process.stderr is not None
        seen = read_until(process.stderr.fileno(), "serves")
        strict_server.stop()
        try:
            seen += read_until(process.stderr.fileno(), "trying again")
        finally:
            strict_server.start()
        seen += read_until(process.stderr.fileno(), "answers again")
        process.send_signal(signal.SIGTERM)
        done = process.done()
    assert done.code == 0
    assert CANARY not in seen + done.err
    assert all(json.loads(line) for line in (seen + done.err).splitlines())


# pipes


def test_a_reader_that_closes_the_pipe_early_is_no_error_of_ours(outbox: Outbox, shop: Conn, dsn: str) -> None:
    posts.submit_many(shop, ((f"d{n}", Post(content="rejected " + "x" * 200)) for n in range(2_000)))
    drain(posts, dsn)
    for arguments in (["dead", "--limit", "5000"], ["dead", "--limit", "5000", "--json"]):
        with outbox.process(*arguments) as process:
            assert process.stdout is not None
            process.stdout.read(10)
            process.stdout.close()
            process.stdout = None
            done = process.done()
        assert done.err == ""
        assert done.code in (0, 1)


def test_results_go_to_standard_output_and_nothing_else(outbox: Outbox, shop: Conn) -> None:
    for arguments in (["status"], ["dead", "--json"], ["show", "new"], ["retry", "--all"], ["migrate"]):
        done = outbox(*arguments)
        assert done.out
        assert done.err == ""


def test_on_windows_it_is_said_that_it_does_not_run_there(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.cli.sys", SimpleNamespace(platform="win32"))
    assert (
        outbox("status", code=2).err.splitlines()[-1]
        == "Error: Outbox runs on Linux and macOS; on Windows, run it in WSL"
    )
