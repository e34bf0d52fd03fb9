"""No secret is ever said, wherever it was given; and nothing in the data does anything to a terminal or a log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from apps.cli import posts
from kit.broker import Broker, channel
from kit.commands import Outbox
from kit.databases import OWNER, make_database
from kit.pipelines import Post, deployed, drain, value
from kit.servers import DEADLINE, PostgresServer, Process, free_port, wait_for
from outbox import Consumer, Inbox, SettingsError, Worker, settings
from outbox.database import migrations
from outbox.database.dsn import engine_conninfo, place, redact
from outbox.database.link import Link
from outbox.definition import deploy
from outbox.messages.handoff import Handoff
from outbox.messages.rabbitmq.publisher import Publisher
from outbox.messages.relay import Relay

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]

CANARY = "canary-5f2a"
APP = "apps.cli:posts"
# libpq quotes what it can't read, and reads a part of an unescaped password as host, port or database.
TORN = [
    f"postgresql://u:{CANARY}/x@127.0.0.1/db",
    f"postgresql://u:p@{CANARY}@127.0.0.1/db",
    f"host=127.0.0.1 password={CANARY} nonsense=1",
    f"host=127.0.0.1 password='{CANARY}",
]
TORN_AMQP = [f"amqp://u:{CANARY}/x@127.0.0.1/", f"amqp://u:p:{CANARY}@127.0.0.1/", f"http://u:{CANARY}@h/", CANARY]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that asks the owner for the password; its database `app` has the pipeline."""
    server = PostgresServer()
    try:
        rules = server.data / "pg_hba.conf"
        rules.write_text(f"host all {OWNER} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")
        server.start()
        with server.admin() as admin:
            admin.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{CANARY}'")
        for name in ("app", "empty"):
            make_database(server, name)
        with psycopg.connect(dsn_of(server), autocommit=True) as conn:
            migrations.apply(conn)
            deploy.deploy(conn, posts)
        yield server
    finally:
        server.remove()


def dsn_of(server: PostgresServer, database: str = "app", password: str = CANARY) -> str:
    return f"postgresql://{OWNER}:{password}@127.0.0.1:{server.port}/{database}"


@pytest.fixture(scope="module")
def amqp_secrets(shared_broker: Broker) -> list[str]:
    """Virtual hosts for a user whose password is the canary, made in one call: more than there are tests here."""
    vhosts = [shared_broker.new_url().rpartition("/")[2] for _ in range(20)]
    rights = {"user": "canary", "configure": ".*", "write": ".*", "read": ".*"}
    shared_broker.define(
        users=[{"name": "canary", "password": CANARY, "tags": []}],
        permissions=[{"vhost": vhost, **rights} for vhost in vhosts],
    )
    return [f"amqp://canary:{CANARY}@127.0.0.1:{shared_broker.port}/{vhost}" for vhost in vhosts]


@pytest.fixture
def amqp_secret(broker: Broker, amqp_secrets: list[str]) -> str:
    """A virtual host of the test's own, for a user whose password is the canary."""
    return amqp_secrets.pop()


def given(way: str, folder: Path, **values: str) -> tuple[list[str], dict[str, str]]:
    """Give settings by the environment, in pyproject.toml, or (the DSN) as an option: arguments, environment."""
    (folder / "pyproject.toml").write_text("")
    if way == "file":
        lines = "".join(f"{name.replace('_', '-')} = '{text}'\n" for name, text in values.items())
        (folder / "pyproject.toml").write_text(f"[tool.outbox]\n{lines}")
        return [], {}
    env = {f"OUTBOX_{name.upper()}": text for name, text in values.items()}
    return (["--dsn", env.pop("OUTBOX_DSN")], env) if way == "option" else ([], env)


def quiet(said: str) -> None:
    assert said
    assert CANARY not in said, said


COMMANDS = [
    ["migrate"],
    ["migrate", "--check"],
    ["migrate", "--sql"],
    ["migrate", "--roles"],
    ["deploy", "--app", APP],
    ["submit", "--pipeline", "posts"],
    ["status"],
    ["status", "--json"],
    ["show", "a", "--json"],
    ["set-status", "a", "NOWHERE"],
    ["dead"],
    ["retry", "--all"],
    ["parked"],
    ["parked", "--retry", "9"],
    ["relay", "--forget", "nobody"],
    ["relay", "--drain"],
    ["relay", "--drain", "--log", "json"],
    ["doctor"],
    ["doctor", "--json"],
    ["worker", "--app", APP, "--drain", "--no-notify"],
    ["worker", "--app", APP, "--drain", "--log", "json"],
    ["worker", "--app", APP, "--stage", "nowhere", "--drain"],
]


@pytest.mark.parametrize("way", ["environment", "file", "option"])
def test_no_command_says_a_password_when_it_works_or_is_wrong_or_there_is_no_server(
    strict: PostgresServer, amqp_secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = str(free_port())
    dsns = [
        dsn_of(strict),
        dsn_of(strict, "empty"),
        dsn_of(strict, "missing"),
        dsn_of(strict, password=f"{CANARY}-wrong"),
        dsn_of(strict).replace(str(strict.port), nowhere),
        f"host=127.0.0.1 port={strict.port} user={OWNER} password={CANARY} dbname=app",
        *TORN,
    ]
    for dsn in dsns:
        options, env = given(way, tmp_path, dsn=dsn, listen_dsn=dsn, amqp_url=amqp_secret)
        works = dsn in (dsns[0], dsns[5])
        # Where nothing can be reached, all commands end in the same place: some of each kind are enough.
        for arguments in COMMANDS if works or dsn == dsns[1] else COMMANDS[::5]:
            if arguments[0] == "migrate" and dsn == dsns[1]:
                continue  # it stays empty
            done = Outbox(None)(*options, *arguments, code=None, input='{"entity_id": "a"}', env=env)
            quiet(done.out + done.err)
            assert works or done.code or arguments == ["doctor"], (dsn, arguments)


def test_no_command_says_the_password_of_a_second_database_or_listener(
    dsn: str, conn: Conn, strict: PostgresServer, amqp_secret: str
) -> None:
    deployed(conn)
    conn.execute("INSERT INTO outbox.messages (topic, key, payload) VALUES ('t', 'k', '{}')")
    outbox = Outbox(dsn)
    for torn in TORN:
        for arguments in (["relay", "--drain"], ["worker", "--app", APP, "--drain"]):
            env = {"OUTBOX_LISTEN_DSN": torn, "OUTBOX_AMQP_URL": amqp_secret}
            quiet(outbox(*arguments, code=1, env=env).err)
        for to in ([], ["--to", torn]):
            quiet(outbox("relay", "--pipeline", "posts", *to, code=1, env={"OUTBOX_TO_DSN": torn}).err)
    quiet(outbox("relay", "--pipeline", "posts", "--drain", env={"OUTBOX_TO_DSN": dsn_of(strict)}).err)
    quiet(json.dumps(outbox("status", "--json").json))
    for url in TORN_AMQP:
        quiet(outbox("relay", "--drain", code=None, env={"OUTBOX_AMQP_URL": url}).err)


def test_a_relay_and_a_consumer_that_are_refused_say_so_without_the_password(
    dsn: str, conn: Conn, strict: PostgresServer, amqp_secret: str, spawn: Spawn
) -> None:
    deployed(conn)
    conn.execute("INSERT INTO outbox.messages (topic, key, payload) VALUES ('t', 'k', '{}')")
    wrong, nobody = f"{CANARY}-wrong", f"127.0.0.1:{free_port()}"
    refused = {"OUTBOX_AMQP_URL": amqp_secret.replace(CANARY, wrong)}
    away = {"OUTBOX_AMQP_URL": f"amqp://canary:{CANARY}@{nobody}/"}
    relays = [
        spawn("relay", "--name", "a", "--log", "json", env=refused),
        spawn("relay", "--name", "b", env=away),
        spawn("relay", "--name", "c", "--pipeline", "posts", env={"OUTBOX_TO_DSN": dsn_of(strict, password=wrong)}),
        spawn(
            "relay", "--name", "d", "--pipeline", "posts", env={"OUTBOX_TO_DSN": f"postgresql://u:{CANARY}@{nobody}/x"}
        ),
    ]
    for relay in relays:
        wait_for(lambda relay=relay: "wait in the log" in relay.text(), what=f"it says its trouble: {relay.text()}")
    wait_for(lambda: value(conn, "SELECT count(trouble) FROM outbox.relays") == 4, what="status shows it")
    troubles = json.dumps(Outbox(dsn)("status", "--json").json["relays"]) + Outbox(dsn)("doctor", code=1).out
    assert re.search("ACCESS_REFUSED|refused", troubles)
    quiet(troubles)
    for process in relays:
        process.send(signal.SIGTERM)
    for process in relays:
        assert process.wait() == 0
        quiet(process.text())


@pytest.mark.parametrize("kind", ["worker", "consumer", "relay"])
def test_a_traceback_of_an_application_and_its_log_at_debug_have_no_password(
    strict: PostgresServer, amqp_secret: str, kind: str
) -> None:
    for dsn in (dsn_of(strict, "empty"), dsn_of(strict, password=f"{CANARY}-wrong"), *TORN):
        with Outbox(None).process(kind, program=("-m", "apps.debugging")) as process:
            done = process.done(f"{dsn}\n{amqp_secret}".encode())
        assert done.code, done
        assert "Traceback" in done.err
        quiet(done.out + done.err)


def test_a_consumer_at_debug_says_no_password_while_it_works_or_is_refused(
    strict: PostgresServer, amqp_secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with channel(amqp_secret) as opened:
        opened.queue_declare("q", durable=True)
        opened.basic_publish("", "q", b"no JSON")

    async def handle(delivery: Any) -> None: ...

    async def consume(url: str, words: str) -> None:
        consumer = Consumer("q", handle, dsn=dsn_of(strict), amqp_url=url, concurrency=2)
        running = asyncio.create_task(consumer.run())
        while words not in caplog.text and not running.done():
            await asyncio.sleep(0.02)
        consumer.stop()
        await running

    for url, words in ((amqp_secret, "is parked"), (amqp_secret.replace(CANARY, f"{CANARY}-wrong"), "trying again")):
        asyncio.run(asyncio.wait_for(consume(url, words), DEADLINE))
        assert words in caplog.text
    quiet(caplog.text)


def test_no_object_shows_its_password(strict: PostgresServer, amqp_secret: str) -> None:
    dsn = dsn_of(strict)

    async def handle(delivery: Any) -> None: ...

    async def made() -> list[Any]:
        link = Link(dsn, "test")
        return [
            link,
            await link.connection(),
            await link.close(),
            Handoff(dsn, "posts"),
            Publisher(amqp_secret, source="/"),
        ]

    objects = [
        *asyncio.run(made()), Worker(posts, dsn), Relay(dsn, Handoff(dsn, "posts")), Inbox("crm"), Consumer("q", handle, dsn=dsn, amqp_url=amqp_secret),
        settings.load(dsn=dsn, listen_dsn=dsn, amqp_url=amqp_secret), redact(dsn), place(dsn),
    ]  # fmt: skip
    for found in objects:
        quiet(f"{found!r} {found!s}")
        quiet(
            repr(
                [
                    vars(found)[name]
                    for name in ("_subscription", "_handling", "_lanes", "_log", "_target")
                    if name in getattr(found, "__dict__", {})
                ]
            )
        )


@pytest.mark.parametrize("dsn", TORN)
def test_a_dsn_that_cannot_be_read_is_refused_by_ours_before_libpq_quotes_it(dsn: str) -> None:
    with pytest.raises(SettingsError, match="DSN") as refused:
        engine_conninfo(dsn, "test")
    assert refused.value.__context__ is None, "nothing else comes along in a traceback"
    quiet(str(refused.value))


def test_the_demos_processes_have_no_password_in_the_list_of_processes(strict: PostgresServer, tmp_path: Path) -> None:
    with strict.admin() as admin:
        admin.execute(f"CREATE DATABASE demo OWNER {OWNER}".encode())
    with (
        (tmp_path / "said").open("wb") as said,
        Outbox(dsn_of(strict, "demo")).process("demo", stdout=said, stderr=said) as demo,
    ):
        wait_for(
            lambda: sum("worker" in line for line in children_of(demo.pid)) == 2, what="it has started its workers"
        )
        children = children_of(demo.pid)
        demo.interrupt()
        demo.wait(DEADLINE)
    quiet("\n".join(children) + (tmp_path / "said").read_text())


def children_of(pid: int) -> list[str]:
    """The command lines of a process and of those that it has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                line = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if pid in (parent, int(entry.name)):
                found.append(line)
    return found


# What is in the data.

EVIL = "a\x1b]0;owned\x07\r\nERROR forged\x1b[2J\x9b31m\u202eb"


def harmless(said: str, what: Any = "") -> None:
    assert said
    assert [char for char in said if not char.isprintable() and char != "\n"] == [], what
    assert not re.search("^ERROR forged", said, re.MULTILINE), what


def test_control_characters_reach_neither_the_terminal_nor_a_log_line(outbox: Outbox, conn: Conn) -> None:
    deployed(conn, posts)
    posts.submit(conn, EVIL, Post())
    # As a hand that owns the tables can write it.
    conn.execute("INSERT INTO outbox.routes (pipeline, status) VALUES ('posts', %s)", [EVIL])
    conn.execute(
        "INSERT INTO outbox.legal_changes VALUES ('posts', 'RECEIVED', %s), ('posts', %s, 'RECEIVED')", [EVIL] * 2
    )
    conn.execute("INSERT INTO outbox.schema_migrations (name) VALUES (%s)", [f"9999{EVIL}"])
    conn.execute("INSERT INTO outbox.relays (name, owner, target, cluster, window_start, trouble) "
                 "VALUES (%s, %s, %s, '', '3:3:', %s)", [EVIL] * 4)  # fmt: skip
    conn.execute("INSERT INTO outbox.parked_messages (relay, id, message_id, topic, key, created_at, reason) "
                 "VALUES (%s, 1, gen_random_uuid(), %s, %s, now(), %s)", [EVIL] * 4)  # fmt: skip
    conn.execute("INSERT INTO outbox.parked_deliveries (consumer, queue, message_id, topic, body, headers, reason, digest) "
                 "VALUES ('c' || chr(27), %s, %s, %s, %s, '{}', %s, '')", [EVIL, EVIL, EVIL, EVIL.encode(), EVIL])  # fmt: skip
    conn.execute("INSERT INTO outbox.messages (topic, key, payload, workflow_id) "
                 "SELECT %s, %s, to_jsonb(%s::text), id FROM outbox.workflow_states", [EVIL] * 3)  # fmt: skip
    commands = [
        ["set-status", EVIL, EVIL, "--reason", EVIL, "--by", EVIL],
        ["set-status", EVIL, EVIL],
        ["retry", EVIL],
        ["show", EVIL],
        ["show", EVIL, "--json"],
        ["status"],
        ["status", "--json"],
        ["parked"],
        ["parked", "--json"],
        ["parked", "--retry", "1"],
        ["parked", "--relay", EVIL, "--retry", "7"],
        ["relay", "--forget", EVIL],
        ["migrate"],
        ["migrate", "--check"],
        ["doctor"],
        ["doctor", "--json"],
        ["deploy", "--app", APP, "--check"],
        ["deploy", "--app", APP],
        ["set-status", EVIL, "RECEIVED"],
        ["deploy", "--app", APP, "--check"],
        ["deploy", "--app", APP],
    ]
    for arguments in commands:
        done = outbox(*arguments, code=None)
        harmless(done.out + done.err, arguments)
    assert value(conn, "SELECT count(*) FROM outbox.routes WHERE status = %s", EVIL) == 0, (
        "all commands have had their turn"
    )


@pytest.mark.parametrize("style", ["text", "json"])
def test_log_lines_of_worker_and_relay_are_one_line_each_whatever_is_in_the_data(
    outbox: Outbox, conn: Conn, amqp: str, style: str
) -> None:
    deployed(conn, posts)
    posts.submit(conn, EVIL, Post(content=f"rejected {EVIL}"))
    conn.execute(
        "INSERT INTO outbox.workers (name, stages, lease, beat_at) VALUES (%s, '{}', '1 s', now() - interval '1 day')",
        [EVIL],
    )
    conn.execute("INSERT INTO outbox.messages (topic, key, payload, headers) VALUES (%s, %s, '1', '{}')", [EVIL] * 2)
    said = outbox("worker", "--app", APP, "--drain", "--log", style).err
    said += outbox("relay", "--drain", "--log", style, env={"OUTBOX_AMQP_URL": amqp}).err
    harmless(said)
    assert "is dead" in said
    assert "owned" in said, "it is told, and does nothing"
    if style == "json":
        assert all(json.loads(line) for line in said.splitlines())


def test_a_program_that_sets_up_no_log_gets_no_control_characters_either(
    conn: Conn, dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(conn, posts)
    posts.submit(conn, EVIL, Post(content=f"rejected {EVIL}"))
    conn.execute(
        "INSERT INTO outbox.workers (name, stages, lease, beat_at) VALUES (%s, '{}', '1 s', now() - interval '1 day')",
        [EVIL],
    )
    monkeypatch.setattr(logging.getLogger("outbox"), "propagate", False)  # pytest's own handlers
    drain(posts, dsn)
    harmless(capsys.readouterr().err)
