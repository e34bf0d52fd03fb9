"""outbox dev: everything in one terminal, through edits good and bad, until Ctrl-C. And outbox psql."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import status_of, value
from kit.pooler import way_env
from kit.servers import Process, wait_for
from outbox import SettingsError
from outbox.commands import page
from outbox.database import embedded
from outbox.database.dsn import as_environment

Conn = psycopg.Connection[Any]

SHOP = """
from outbox import Pipeline, Run

orders = Pipeline("orders", data=dict, initial="NEW", final={"PAID"})
WORDS = "first!"

@orders.stage("pay", on="NEW", to="PAID")
async def pay(run: Run) -> dict:
    return {"by": WORDS}
"""
NAME = "shop_of_dev"
APP = f"{NAME}:orders"


AT_THE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "outbox", *sys.argv[1:]])
"""


class Terminal:
    """A terminal with a command of Outbox in it: the terminal sends the signals, as it does for a person."""

    def __init__(self, *arguments: str, dsn: str, cwd: Path) -> None:
        self.side, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", AT_THE_TERMINAL, *arguments], env={**os.environ, **way_env(dsn), "PAGER": "cat"},
            cwd=cwd, stdin=other, stdout=other, stderr=other, start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self.said = ""

    def read(self) -> str:
        """Returns all that it has shown."""
        if select.select([self.side], [], [], 0)[0]:
            with contextlib.suppress(OSError):  # nobody has it open any more
                self.said += os.read(self.side, 10_000).decode(errors="replace")
        return self.said

    def until(self, words: str) -> None:
        wait_for(lambda: words in self.read(), what=f"it shows {words!r}")

    def type(self, text: str) -> None:
        os.write(self.side, text.encode())

    def code(self) -> int:
        """Returns the exit code when it has ended. What it shows until then must be read, or it would wait."""
        wait_for(lambda: self.read() is not None and self.process.poll() is not None, what="it ends")
        return int(self.process.returncode)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        print(self.read()[-5000:])
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.side)


class Dev:
    """`outbox dev` on a database, in a folder of its own with one file."""

    def __init__(self, dsn: str, folder: Path, conn: Conn) -> None:
        self.folder, self.conn = folder, conn
        self.write("def broken(:")
        self.process = Process(
            ["-m", "outbox", "dev", "--app", APP, "--port", "0", "--as", "sarah"], way_env(dsn), folder, cwd=folder
        )
        self.seen = 0

    def write(self, text: str) -> None:
        """Saves the file. Neither its size nor its time shows that it is another one."""
        file = self.folder / f"{NAME}.py"
        file.write_text(text)
        os.utime(file, (1_800_000_000, 1_800_000_000))

    def until(self, words: str) -> None:
        """Waits until this is said, after what was waited for before."""

        def said() -> bool:
            assert self.process.running, self.process.text()
            found = self.process.text().find(words, self.seen)
            if found >= 0:
                self.seen = found + len(words)
            return found >= 0

        wait_for(said, what=f"{words!r} is said")

    def paid_by(self, entity: str) -> Any:
        """Submits an order, and returns what the stage has written."""
        self.conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('orders', %s)", [entity])
        wait_for(lambda: status_of(self.conn, entity) == "PAID", what=f"{entity} is paid")
        return value(self.conn, "SELECT metadata ->> 'by' FROM outbox.workflow_states WHERE entity_id = %s", entity)

    def child(self, command: str) -> psutil.Process | None:
        """Returns a process that it has started."""
        for each in psutil.Process(self.process.popen.pid).children():
            try:
                if command in each.cmdline():
                    return each
            except psutil.Error:
                continue
        return None


@pytest.fixture
def dev(empty_dsn: str, tmp_path: Path) -> Iterator[Dev]:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        made = Dev(empty_dsn, tmp_path, conn)
        yield made
        made.process.end()
        print(made.process.text()[-5000:])


def line(process: Process) -> str:
    assert process.popen.stdout is not None
    return process.popen.stdout.readline().decode().strip()


def test_a_good_edit_runs_and_a_bad_one_is_said_while_the_old_worker_goes_on(dev: Dev) -> None:
    dev.until("SyntaxError")
    dev.until("not deployed: no worker runs")
    address = line(dev.process).removeprefix("the page: ")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address), dev.process.text()
    dev.write(SHOP)
    dev.until("serves orders.pay")
    assert dev.paid_by("a") == "first!"
    shown = httpx.get(address).text
    assert "orders" in shown
    assert "sarah" in shown

    dev.write(SHOP.replace("first!", "second"))  # as many bytes, at the same time
    dev.until("serves orders.pay")
    assert dev.paid_by("b") == "second"

    dev.write("while True:\n    pass\n")  # hangs while it is imported
    dev.until(f"{NAME}.py changed")
    dev.write(SHOP.replace('"PAID"', '"GONE"'))
    dev.until("refused")
    dev.until("not deployed: the previous worker keeps running")
    assert dev.paid_by("c") == "second"

    dev.write(SHOP.replace("first!", "third!"))
    dev.until("serves orders.pay")
    assert dev.paid_by("d") == "third!"

    worker = dev.child("worker")
    assert worker is not None
    worker.kill()
    dev.until("was killed by SIGKILL")
    dev.until("serves orders.pay")
    worker = dev.child("worker")
    assert worker is not None
    dev.process.kill9()
    wait_for(lambda: not worker.is_running(), what="the worker ends with what has started it")


def test_a_deploy_that_hangs_ends_with_what_has_started_it(dev: Dev) -> None:
    dev.until("not deployed")
    dev.write("import pathlib, time\npathlib.Path('hangs').touch()\nwhile True:\n    time.sleep(1)\n")
    wait_for((dev.folder / "hangs").exists, what="it is being imported")
    deploy = dev.child("deploy")
    assert deploy is not None
    dev.process.kill9()
    wait_for(lambda: not deploy.is_running(), what="the deploy ends")


def test_ctrl_c_at_the_terminal_ends_all_and_a_second_one_at_once(empty_dsn: str, tmp_path: Path) -> None:
    slow = SHOP.replace("from outbox", "import asyncio\nfrom outbox").replace(
        "    return", "    await asyncio.sleep(3600)\n    return"
    )
    (tmp_path / f"{NAME}.py").write_text(slow)
    with Terminal("dev", "--app", APP, "--port", "0", dsn=empty_dsn, cwd=tmp_path) as terminal:
        terminal.until("serves orders.pay")
        children = psutil.Process(terminal.process.pid).children(recursive=True)
        assert len(children) == 1
        with psycopg.connect(empty_dsn, autocommit=True) as conn:
            conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('orders', 'a')")
            wait_for(lambda: value(conn, "SELECT owner IS NOT NULL FROM outbox.jobs"), what="it is handled")
            terminal.type("\x03")
            terminal.until("stopping: told by a signal")
            terminal.type("\x03")
            terminal.until("interrupted 1 handlers")
            assert terminal.code() == 0
            wait_for(lambda: not any(each.is_running() for each in children), what="the worker has ended")
            assert value(conn, "SELECT owner IS NULL FROM outbox.jobs"), "it runs again"


def test_it_needs_an_application_a_database_and_its_packages(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "give --app module:object, or set OUTBOX_APP" in outbox.fails("dev")
    nowhere = {"OUTBOX_DSN": "postgresql://me:canary@127.0.0.1:1/x"}
    assert "canary" not in outbox.fails("dev", "--app", APP, env=nowhere)
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    monkeypatch.delitem(sys.modules, "outbox.commands.reloading", raising=False)
    assert "outbox dev needs watchfiles: pip install 'outbox-engine[local]'" in outbox.fails("dev", "--app", APP)


def test_the_page_is_at_its_usual_port_or_at_another_one_but_not_at_another_than_was_asked_for(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(page, "PORT", port)
        with page.shown(dsn, "sarah") as url:
            assert httpx.get(url).status_code == 200
            assert str(port) not in url
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
        with pytest.raises(SettingsError, match=f"--port {port}"), page.shown(dsn, "sarah", port=port):
            pass


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_in_two_parts_waits_for_no_acknowledgement(host: str) -> None:
    with page.listening(host, 0) as opened, socket.create_connection(opened.getsockname()[:2]):
        connection, _ = opened.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_ui_says_which_port_is_taken(outbox: Outbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: something else listens there" in outbox.fails("ui", "--port", str(port))


def test_psql_is_opened_on_the_database_and_gets_all_arguments(outbox: Outbox) -> None:
    def run(*arguments: str, input: bytes = b"", **env: str) -> tuple[int, str]:
        with outbox.process("psql", *arguments, env=env) as process:
            done = process.done(input)
            return done.code, done.out + done.err

    code, said = run("-tA", "-c", "SELECT current_database()", "-v", "x=1")
    assert (code, said.strip()) == (0, value_of(outbox))
    assert run("-v", "ON_ERROR_STOP=1", input=b"SELECT nothing;")[0] == 3
    nowhere = {"PATH": ""}
    assert run("--version", **nowhere)[1].startswith("psql (PostgreSQL)"), "the bundled one"


def value_of(outbox: Outbox) -> str:
    with psycopg.connect(outbox.dsn or "") as conn:
        return str(value(conn, "SELECT current_database()"))


def test_without_psql_it_says_what_to_install(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(embedded, "program", lambda name: None)
    assert "there is no psql on PATH" in outbox.fails("psql")


def test_psql_shows_no_password_to_other_users_of_the_machine() -> None:
    environment, rest = as_environment("postgresql://me:s3cret@db:5433/shop?keepalives_idle=7&sslpassword=s3cret")
    assert environment == {
        "PGUSER": "me",
        "PGPASSWORD": "s3cret",
        "PGHOST": "db",
        "PGPORT": "5433",
        "PGDATABASE": "shop",
    }
    assert rest == "keepalives_idle=7"
    with pytest.raises(SettingsError):
        as_environment("postgresql://me:p/w@db/shop")


def test_ctrl_c_in_psql_ends_a_query_and_not_psql(dsn: str, conn: Conn, tmp_path: Path) -> None:
    with Terminal("psql", "-X", dsn=dsn, cwd=tmp_path) as terminal:
        terminal.until("=> ")
        terminal.type("SELECT pg_sleep(3600);\n")
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        wait_for(lambda: value(conn, sleeping) == 1, what="the query runs")
        terminal.type("\x03")
        terminal.until("canceling statement")
        terminal.type("\\q\n")
        assert terminal.code() == 0
