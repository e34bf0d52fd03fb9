"""Real Postgres for every test: one server a test process, a database cloned from a migrated template for each test
(kit/databases.py).
A real RabbitMQ for those that ask: one node a test process, a virtual host for each test.

The tests work as `outbox_owner`, who owns the schema `outbox` and nothing more. Async tests call `asyncio.run`.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pytest_postgresql.executors import NoopExecutor

from kit import pooler as pooling
from kit.broker import Broker
from kit.commands import Outbox
from kit.databases import OWNER, clone, end_sessions, templates
from kit.faults import prepare
from kit.interleave import Explore, Scheduler
from kit.pooler import Pooler, way_env
from kit.servers import PostgresServer, Process, store
from kit.shop import stock

Conn = psycopg.Connection[Any]

# A suite that is started in the background or by nohup ignores these. What it starts would inherit that, but not a handler.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


# The folders of tests, of what they start and of the benches: most of them hold the data of a server.
os.environ["TMPDIR"] = tempfile.tempdir = str(store())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need RabbitMQ, PgBouncer or Chromium, before pytest chooses by marks."""
    for item in items:
        asked = set(getattr(item, "fixturenames", ()))
        if {"shared_broker", "make_broker", "cluster"} & asked:
            item.add_marker("rabbitmq")
        if "pooler" in asked:
            item.add_marker("pgbouncer")
        if "browser" in asked:
            item.add_marker("chromium")


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over what is loaded by now: hundreds of thousands of objects, which stay."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failure when it happens: a run that is cut off never comes to its summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}", file=sys.stderr)


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        if os.environ.get("OUTBOX_TEST_POOLER"):
            pooling.between = Pooler(server, OWNER, size=20).start()
        try:
            yield server
        finally:
            end_sessions()
            if pooling.between is not None:
                pooling.between.remove()


empty_template, template = templates()


@pytest.fixture
def dsn(template: NoopExecutor) -> Iterator[str]:
    """A migrated database of the test's own, as the schema's owner."""
    with clone(template) as dsn:
        yield dsn


@pytest.fixture
def empty_dsn(empty_template: NoopExecutor) -> Iterator[str]:
    """A database of the test's own without any migration."""
    with clone(empty_template) as dsn:
        yield dsn


@pytest.fixture
def admin_dsn(dsn: str) -> str:
    """The test's database as superuser."""
    return dsn.replace(f"{OWNER}@", "postgres@")


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the test's database, autocommit."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def connect(dsn: str) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """Make further connections to the test's database; they are closed at its end."""
    opened: list[psycopg.Connection[Any]] = []

    def connect(*, autocommit: bool = True) -> psycopg.Connection[Any]:
        opened.append(psycopg.connect(dsn, autocommit=autocommit))
        return opened[-1]

    yield connect
    for conn in opened:
        conn.close()


@pytest.fixture
def explore(conn: psycopg.Connection[Any], dsn: str, admin_dsn: str) -> Iterator[Explore]:
    """Play scenes on the test's database, each in every order of its steps. See kit/interleave.py."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET deadlock_timeout = '20ms'")
    conn.execute("SET enable_seqscan = off")
    with Scheduler(dsn) as scheduler:
        yield scheduler.explore


@pytest.fixture
def outbox(dsn: str) -> Outbox:
    """The command line on the test's database."""
    return Outbox(dsn)


@pytest.fixture
def spawn(dsn: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start `python -m outbox …` on the test's database as a real process; whatever still runs is killed."""
    started: list[Process] = []
    here = Path(__file__).parent

    def spawn(*arguments: str, env: dict[str, str] | None = None, program: Sequence[str] = ("-m", "outbox")) -> Process:
        path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = {**way_env(dsn), "PYTHONPATH": path, **(env or {})}
        started.append(Process([*program, *arguments], settings, tmp_path))
        return started[-1]

    yield spawn
    for process in started:
        process.end()
        print(process.text()[-3000:])  # which pytest shows when the test has failed


if sys.platform == "win32":
    raise RuntimeError("the tests use POSIX signals")


@pytest.fixture
def make_server() -> Iterator[Callable[[str], PostgresServer]]:
    """Start a server of a given Postgres version; it is removed at the test's end."""
    made: list[PostgresServer] = []

    def make(version: str) -> PostgresServer:
        made.append(PostgresServer(version))
        return made[-1].start()

    yield make
    for server in made:
        server.remove()


@pytest.fixture(scope="session")
def pooler(server: PostgresServer, template: NoopExecutor) -> Iterator[Pooler]:
    """PgBouncer in transaction mode, in front of the test process's Postgres, where the template has made the role."""
    pooler = Pooler(server, OWNER)
    try:
        yield pooler.start()
    finally:
        pooler.remove()


@pytest.fixture(scope="session")
def shared_broker() -> Iterator[Broker]:
    broker = Broker()
    try:
        yield broker.start()
    finally:
        broker.remove()


@pytest.fixture
def broker(shared_broker: Broker) -> Iterator[Broker]:
    """The test process's RabbitMQ. The test may kill, freeze and block it: the next one finds it well."""
    yield shared_broker
    shared_broker.recover()


@pytest.fixture
def amqp(broker: Broker) -> str:
    """The URL of a virtual host of the test's own on `broker`."""
    return broker.new_url()


@pytest.fixture
def make_broker() -> Iterator[Callable[[], Broker]]:
    """Start one more RabbitMQ, of the test's own; it is removed at the test's end."""
    made: list[Broker] = []

    def make() -> Broker:
        made.append(Broker())
        return made[-1].start()

    yield make
    for broker in made:
        broker.remove()


@pytest.fixture
def app(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The application of the fault tests, deployed; see kit/faults.py."""
    monkeypatch.setenv("OUTBOX_DSN", dsn)
    return prepare(conn, dsn)


@pytest.fixture
def shop(conn: Conn, dsn: str) -> Conn:
    """Posts in many states: `done` has completed, `review` waits for a person, `broken` is dead, `new` is ready."""
    stock(conn, dsn)
    return conn
