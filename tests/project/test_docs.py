"""Docs can't drift: what the README tells to type is typed here, in its order, and what it refers to is there."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from pika.exceptions import ChannelClosedByBroker, UnroutableError

from kit.broker import channel
from kit.commands import Outbox
from kit.databases import OWNER
from kit.forked import Popen
from kit.pipelines import status_of, value
from kit.servers import DEADLINE, Process, wait_for
from outbox.cli import main
from tools.cli_reference import reference

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
Block = tuple[str, str]


def blocks(text: str) -> list[Block]:
    """Return what a page tells to type, as (language, text)."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


BEFORE, RABBITMQ, AFTER = re.split(r"^(## Messages to RabbitMQ.*?)(?=^## )", README, flags=re.DOTALL | re.MULTILINE)
BLOCKS = blocks(BEFORE + AFTER)
INBOX_BLOCKS = blocks((ROOT / "docs" / "inbox.md").read_text(encoding="utf-8"))


def test_cli_md_is_what_the_help_says() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference(), "run: make docs"


def test_every_command_that_a_page_names_is_there() -> None:
    names = {*main.list_commands(click.Context(main)), "hosts"}  # `outbox hosts` is the name of a connection
    texts = {path: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
    named = [(path.name, name) for path, text in texts.items() for name in re.findall(r"`outbox ([a-z][a-z-]*)", text)]
    assert len(named) > 100
    assert [each for each in named if each[1] not in names] == []


def test_the_two_commands_come_first_and_are_in_the_makefile() -> None:
    assert BLOCKS[0] == ("sh", "make demo\nmake test\n")
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= set(targets)


def test_every_test_that_a_guarantee_names_is_there() -> None:
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("guarantees.md", "reliability.md")]
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", "".join(pages)))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_page_that_a_page_refers_to_is_there() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")]:
        found = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        assert [link for link in found if not (page.parent / link).exists()] == [], page.name


class Reader:
    """Types what the README says into a database and a folder that are empty."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.folder = folder
        self.env = {"OUTBOX_DSN": dsn, "OUTBOX_APP": "posts:posts"}
        self.running: list[Process] = []

    @property
    def dsn(self) -> str:
        return self.env["OUTBOX_DSN"]

    def type(self, language: str, text: str) -> None:
        if language == "python":
            self.python(text)
        elif language == "sql":
            self.sql(text)
        else:
            for line in text.splitlines():
                self.shell(line)
        if self.running:
            wait_for(self.is_quiet, what="the worker has done what is due")

    def sql(self, text: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(text.encode())

    def python(self, text: str) -> None:
        if named := re.match(r"# (\w+\.py)\n", text):
            (self.folder / named[1]).write_text(text)
        else:
            self.run("-c", text)

    def shell(self, line: str) -> None:
        words = shlex.split(line.replace("outbox ", "python -m outbox ", 1), comments=True)[1:]
        if line.startswith(("outbox dev", "outbox worker", "outbox relay", "python crm.py")):
            self.running.append(Process(words, self.env, self.folder, cwd=self.folder))
        elif line.startswith(("outbox ", "python ")):
            self.run(*words)
        else:
            assert line.startswith(("make ", "export OUTBOX_")), line

    def run(self, *arguments: str) -> None:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = Popen(arguments, env={**os.environ, **self.env}, cwd=self.folder, **pipes)
        _, said = process.communicate(timeout=DEADLINE)
        # Of all commands only doctor may find something: what a page prints need not be all that it wants.
        assert process.returncode == 0 or "doctor" in arguments, f"{arguments}: {said.decode()}"

    def is_quiet(self) -> bool:
        for process in self.running:
            assert process.running, process.text()
        with psycopg.connect(self.dsn) as conn:
            return value(conn, "SELECT count(*) FROM outbox.jobs WHERE stage IS NOT NULL") == 0

    def end(self) -> None:
        for process in self.running:
            process.end()


class Newcomer(Reader):
    """Has no Postgres: types the SQL into `outbox psql`, and what `outbox dev` prints into the other terminal."""

    def sql(self, text: str) -> None:
        self.run("-m", "outbox", "psql", "-v", "ON_ERROR_STOP=1", "-c", text)

    def shell(self, line: str) -> None:
        super().shell(line)
        if line.startswith("export OUTBOX_APP="):
            self.env["OUTBOX_APP"] = line.partition("=")[2]
        elif line.startswith("outbox dev"):
            dev = self.running[-1]
            assert dev.popen.stdout is not None
            for printed in iter(dev.popen.stdout.readline, b""):
                if found := re.fullmatch(r"export OUTBOX_DSN=(.*)", printed.decode().strip()):
                    (self.env["OUTBOX_DSN"],) = shlex.split(found[1])
                    return
            raise AssertionError(dev.text())


def test_what_the_readme_says_works_as_printed_without_another_postgres(tmp_path: Path) -> None:
    # Not tmp_path: as root, the server's user must be able to enter the folder.
    with tempfile.TemporaryDirectory(prefix="ob", ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o755)
        reader = Newcomer("", tmp_path)
        reader.env |= {"OUTBOX_HOME": f"{home}/home", "DATABASE_URL": "", "OUTBOX_APP": ""}
        try:
            for language, text in BLOCKS:
                reader.type(language, text)
            with psycopg.connect(reader.dsn) as conn:
                check_what_has_happened(conn)
            dev = reader.running[0]
            dev.send(signal.SIGINT)
            assert dev.wait() == 0, dev.text()
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(reader.dsn)
        finally:
            reader.end()


def is_bound(amqp: str) -> bool:
    """Whether the exchange leads to a queue."""
    try:
        with channel(amqp) as opened:
            opened.confirm_delivery()
            opened.basic_publish("shop", "posts.?", b"not JSON", mandatory=True)
    except (ChannelClosedByBroker, UnroutableError):
        return False
    return True


def test_messages_to_rabbitmq_work_as_printed(
    dsn: str, conn: psycopg.Connection[Any], amqp: str, tmp_path: Path
) -> None:
    conn.execute("CREATE TABLE outbox.crm (post text)")
    reader = Reader(f"{dsn}?options=-csearch_path%3Doutbox", tmp_path)
    reader.env["OUTBOX_AMQP_URL"] = amqp
    try:
        for language, text in blocks(RABBITMQ):
            reader.type(language, text)
        wait_for(lambda: is_bound(amqp), what="the consumer has made its queue")
        conn.execute(
            """INSERT INTO outbox.messages (topic, payload) VALUES ('posts.completed', '{"entity_id": "post_123"}')"""
        )
        wait_for(lambda: value(conn, "SELECT array_agg(post) FROM outbox.crm") == ["post_123"])
    finally:
        reader.end()


def check_what_has_happened(conn: psycopg.Connection[Any]) -> None:
    ended = [status_of(conn, entity) for entity in ("post_123", "post_124", "post_125")]
    assert ended == ["COMPLETED", "COMPLETED", "REJECTED"]
    assert value(conn, "SELECT array_agg(post ORDER BY post) FROM crm") == ["post_123", "post_124"]
    assert value(conn, "SELECT count(*) FROM outbox.messages WHERE topic = 'posts.completed'") == 2
    assert value(conn, "SELECT array_agg(DISTINCT reason) FROM outbox.state_changes WHERE actor = 'sarah'") == [
        "a fair point, answer it",
        "not ours to answer",
    ]


# docs/inbox.md: the SQL says as whom; Python and the consumer work as crm_app.


@pytest.fixture
def inbox(admin_dsn: str, tmp_path: Path) -> Iterator[Reader]:
    """Type all blocks but the commands; crm.py is written and not run."""
    reader = Reader(admin_dsn.replace("postgres@", "crm_app@"), tmp_path)
    try:
        for language, text in INBOX_BLOCKS:
            if language == "sql":
                whose = {"-- as the owner of the schema outbox": admin_dsn, "-- as crm_app": reader.dsn}
                Reader(whose[text.partition("\n")[0]], tmp_path).type(language, text)
            elif language == "python":
                reader.type(language, text)
        yield reader
    finally:
        with psycopg.connect(admin_dsn, autocommit=True) as admin:
            admin.execute("DROP OWNED BY crm_app; DROP ROLE crm_app")


def test_what_inbox_md_says_works_as_printed(inbox: Reader, conn: psycopg.Connection[Any], admin_dsn: str) -> None:
    with psycopg.connect(admin_dsn) as admin:
        effects = admin.execute("SELECT entity_id, sentiment FROM crm ORDER BY entity_id").fetchall()
    assert effects == [("post_17", -1.0), ("post_18", 1.0)]
    assert value(conn, "SELECT outbox.inbox_oldest() BETWEEN now() - interval '91 days' AND now() - interval '90 days'")


def test_the_consumer_of_inbox_md_needs_no_more_than_it_is_granted(
    inbox: Reader, conn: psycopg.Connection[Any], dsn: str, outbox: Outbox, amqp: str
) -> None:
    with channel(amqp) as opened:
        opened.exchange_declare("shop", "topic", durable=True)
        opened.queue_declare("crm", durable=True)
        opened.queue_bind("crm", "shop", "posts.#")
        opened.basic_publish("shop", "posts.odd", b"no JSON")
    conn.execute("INSERT INTO outbox.messages (topic, key, payload) VALUES ('posts.enriched', 'post_19', %s)",
                 ['{"sentiment": 0.5}'])  # fmt: skip
    outbox("relay", "--exchange", "shop", "--drain", env={"OUTBOX_AMQP_URL": amqp})
    consumer = Process(["crm.py"], {**inbox.env, "OUTBOX_AMQP_URL": amqp}, inbox.folder, cwd=inbox.folder)
    try:
        with psycopg.connect(dsn.replace(f"{OWNER}@", "postgres@"), autocommit=True) as admin:
            handled = "SELECT sentiment FROM crm WHERE entity_id = 'post_19'"
            wait_for(lambda: admin.execute(handled).fetchall() == [(0.5,)], what="it is handled")
        wait_for(
            lambda: value(conn, "SELECT count(*) FROM outbox.parked_deliveries") == 1, what="the odd one is parked"
        )
        for language, text in INBOX_BLOCKS:
            if language == "sh":
                Reader(dsn, inbox.folder).type(language, text)
        retried = "SELECT deliveries FROM outbox.parked_deliveries WHERE consumer = 'crm' AND NOT retry"
        wait_for(lambda: conn.execute(retried).fetchall() == [(2,)], what="it was tried again")
        consumer.send(signal.SIGTERM)
        assert consumer.wait() == 0, consumer.text()
    finally:
        consumer.end()


def test_what_testing_md_says_works_as_printed(admin_dsn: str, tmp_path: Path) -> None:
    files = []
    for language, text in blocks((ROOT / "docs" / "testing.md").read_text(encoding="utf-8")):
        if language == "python" and (named := re.match(r"# (\w+\.py)\n", text)):
            (tmp_path / named[1]).write_text(text)
            files.append(named[1])
    assert files == ["shop.py", "test_handlers.py", "test_orders.py"]
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "OUTBOX_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, env={**kept, "OUTBOX_TEST_DSN": admin_dsn}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "10 passed" in done.stdout
