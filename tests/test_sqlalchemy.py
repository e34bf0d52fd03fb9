"""What the ORM writes in a step commits with the step, or not at all."""

from __future__ import annotations

import asyncio
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy import ForeignKey, event, func, select
from sqlalchemy.dialects import registry
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import NullPool

from kit.letters import uuid7
from kit.pipelines import LATER, QUICK, Post, deployed, drain, one_stage, run_one, status_of, value
from outbox import Delivery, HandlerError, Inbox, InvalidInput, LeaseLost, Pipeline, Run, Tick
from outbox.engine import sharing, transaction
from outbox.messages.delivery import Arrival
from outbox.messages.handling import Handling, Slots
from outbox.messages.receive import Receiver
from outbox.process.service import Service
from outbox.sqlalchemy import step_session, sync_step_session

Conn = psycopg.Connection[Any]


class Base(DeclarativeBase):
    metadata = sqlalchemy.MetaData(schema="outbox")


class Author(Base):
    __tablename__ = "authors"
    name: Mapped[str] = mapped_column(primary_key=True)
    about: Mapped[dict[str, Any] | None] = mapped_column(sqlalchemy.JSON)
    books: Mapped[list[Book]] = relationship(back_populates="author")


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_name: Mapped[str] = mapped_column(ForeignKey(Author.name))
    author: Mapped[Author] = relationship(back_populates="books")


@pytest.fixture(autouse=True)
def tables(conn: Conn) -> None:
    conn.execute("CREATE TABLE outbox.authors (name text PRIMARY KEY, about json)")
    conn.execute(
        "CREATE TABLE outbox.books (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text NOT NULL, "
        "author_name text NOT NULL REFERENCES outbox.authors)"
    )


def authors(conn: Conn) -> list[str]:
    return [name for (name,) in conn.execute("SELECT name FROM outbox.authors ORDER BY name")]


Work = Callable[[Session, Any], None]


@pytest.fixture(params=["async", "sync"])
def handler(request: pytest.FixtureRequest) -> Callable[..., Callable[[Any], Any]]:
    """Makes a handler of a function that gets a session and the run: a plain one, or an async one by run_sync."""

    def sync(work: Work, **options: Any) -> Callable[[Any], Any]:
        def handle(run: Any) -> None:
            with sync_step_session(run[0] if isinstance(run, list) else run, **options) as session:
                work(session, run)

        return handle

    def in_loop(work: Work, **options: Any) -> Callable[[Any], Any]:
        async def handle(run: Any) -> None:
            async with step_session(run[0] if isinstance(run, list) else run, **options) as session:
                await session.run_sync(work, run)

        return handle

    return in_loop if request.param == "async" else sync


Make = Callable[..., Callable[[Any], Any]]


def run_it(conn: Conn, dsn: str, handle: Callable[[Any], Any], **options: Any) -> str | None:
    """Runs one workflow; returns the error of its attempt, if it failed."""
    if "retry" in options:
        run_one(conn, dsn, handle, transaction=True, **options)
    else:
        pipeline = deployed(conn, one_stage(handle, transaction=True, retry=LATER))
        pipeline.submit(conn, "a", Post())
        drain(pipeline, dsn)
    return value(conn, "SELECT error FROM outbox.jobs")


def test_what_the_session_writes_commits_with_the_status(conn: Conn, dsn: str, handler: Make) -> None:
    def work(session: Session, run: Run[Post]) -> None:
        session.add(Author(name=run.entity_id, about={"☃": [1, None]}, books=[Book(title="%(x)s :y $1")]))

    assert run_it(conn, dsn, handler(work)) is None
    assert (status_of(conn, "a"), authors(conn)) == ("DONE", ["a"])
    query = (
        "SELECT count(*) FROM outbox.authors AS a JOIN outbox.workflow_states AS w ON w.xmin = a.xmin "
        "JOIN outbox.books AS b ON b.xmin = a.xmin WHERE a.about ->> '☃' = '[1, null]' AND b.title = '%(x)s :y $1'"
    )
    assert conn.execute(query.encode()).fetchone() == (1,)


def test_what_a_failed_attempt_flushed_is_rolled_back(conn: Conn, dsn: str, handler: Make) -> None:
    def work(session: Session, run: Run[Post]) -> None:
        session.add(Author(name=f"attempt {run.attempt}"))
        session.flush()
        if run.attempt == 1:
            raise ValueError("not yet")

    assert run_it(conn, dsn, handler(work), retry=QUICK) is None
    assert (status_of(conn, "a"), authors(conn)) == ("DONE", ["attempt 2"])


def test_an_error_of_the_last_flush_is_the_handlers(conn: Conn, dsn: str, handler: Make) -> None:
    def work(session: Session, run: Run[Post]) -> None:
        session.add(Author(name="kept"))
        session.flush()
        session.add(Book(title="of nobody", author_name="nobody"))

    error = run_it(conn, dsn, handler(work))
    assert error is not None
    assert error.startswith("IntegrityError: (psycopg.errors.ForeignKeyViolation)")
    assert (status_of(conn, "a"), authors(conn)) == ("NEW", [])


def test_calls_of_several_statements_are_part_of_the_step(conn: Conn, dsn: str, handler: Make) -> None:
    others = deployed(conn, Pipeline("others", initial="NEW", final={"DONE"}))

    def work(session: Session, run: Run[Post]) -> None:
        assert others.submit(session, run.entity_id, {}, by="sarah").created
        assert others.submit_many(session, [("b", {}), ("c", {})]) == 2
        if run.attempt == 1:
            raise ValueError("not yet")

    assert run_it(conn, dsn, handler(work), retry=QUICK) is None
    actors = "SELECT array_agg(c.actor = 'sarah' ORDER BY w.entity_id) FROM outbox.state_changes AS c "
    joined = "JOIN outbox.workflow_states AS w ON w.id = c.workflow_id WHERE w.pipeline = 'others'"
    assert value(conn, actors + joined) == [True, False, False]


def test_a_savepoint_is_rolled_back_alone(conn: Conn, dsn: str, handler: Make) -> None:
    def part(session: Session) -> None:
        with session.begin_nested():
            session.add(Author(name="in it"))
            session.flush()
            session.add(Book(title="of nobody", author_name="nobody"))

    def work(session: Session, run: Run[Post]) -> None:
        session.add(Author(name="before"))
        with pytest.raises(IntegrityError):
            part(session)
        with session.begin_nested() as outer:
            session.add(Author(name="outer"))
            with session.begin_nested():
                session.add(Author(name="inner"))
            outer.rollback()
        with session.begin_nested():
            session.add(Author(name="after"))
        session.begin_nested()
        session.add(Author(name="left open"))

    assert run_it(conn, dsn, handler(work)) is None
    assert (status_of(conn, "a"), authors(conn)) == ("DONE", ["after", "before", "left open"])


ENDS: dict[str, tuple[Callable[[Session], Any], str]] = {
    "commit": (lambda session: session.commit(), "leave out commit()"),
    "begin": (lambda session: session.begin().commit(), "leave out commit()"),
    "rollback": (lambda session: session.rollback(), "raise an error"),
    "commit of the connection": (lambda session: session.connection().commit(), "leave out commit()"),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_session_can_not_end_the_transaction_and_says_what_to_do(
    conn: Conn, dsn: str, handler: Make, how: str
) -> None:
    end, told = ENDS[how]

    def work(session: Session, run: Run[Post]) -> None:
        if how != "begin":
            session.add(Author(name="flushed"))
            session.flush()
        end(session)

    error = run_it(conn, dsn, handler(work))
    assert error is not None
    assert error.startswith("HandlerError: the session of stage p.work c")
    assert told in error
    assert "begin_nested()" in error
    assert (status_of(conn, "a"), authors(conn)) == ("NEW", [])


def test_a_refused_commit_or_rollback_changes_nothing(conn: Conn, dsn: str, handler: Make) -> None:
    def work(session: Session, run: Run[Post]) -> None:
        session.add(Author(name="before"))
        with pytest.raises(HandlerError, match="leave out commit"):
            session.commit()
        with pytest.raises(HandlerError, match="raise an error"):
            session.rollback()
        session.add(Author(name="after"))

    assert run_it(conn, dsn, handler(work)) is None
    assert authors(conn) == ["after", "before"]


def _flush_fails(session: Session) -> None:
    session.add(Author(name=object()))
    with pytest.raises(sqlalchemy.exc.SQLAlchemyError):
        session.flush()


def _raise(session: Session) -> None:
    raise HandlerError("raised in the block")


LOSSES: dict[str, Callable[[Session], Any]] = {
    "an error that leaves the block": _raise,
    "an error of a flush, in Python": _flush_fails,
    "close": lambda session: session.close(),
    "rollback of the connection": lambda session: session.connection().rollback(),
    "reset": lambda session: session.reset(),
    "invalidate": lambda session: session.invalidate(),
}


@pytest.mark.parametrize("how", LOSSES)
@pytest.mark.parametrize("swallowed", [False, True], ids=["", "swallowed"])
def test_a_step_that_has_lost_a_part_is_not_committed(
    conn: Conn, dsn: str, handler: Make, how: str, swallowed: bool
) -> None:
    def work(session: Session, run: Run[Post]) -> None:
        session.add(Author(name="flushed"))
        session.flush()
        LOSSES[how](session)

    inner = handler(work)
    plain = not asyncio.iscoroutinefunction(inner)

    def swallow(run: Run[Post]) -> None:
        with pytest.raises(HandlerError):
            inner(run)

    async def swallow_async(run: Run[Post]) -> None:
        with pytest.raises(HandlerError):
            await inner(run)

    swallowed = swallowed or how == "an error that leaves the block"
    outer = (swallow if plain else swallow_async) if swallowed and how.startswith("an error") else inner
    error = run_it(conn, dsn, outer)
    assert error is not None
    assert "the session of stage p.work was rolled back, closed or left by an error" in error
    assert (status_of(conn, "a"), authors(conn)) == ("NEW", [])


def test_sessions_follow_one_another_and_load_lazily(conn: Conn, dsn: str, handler: Make) -> None:
    def work(session: Session, run: Run[Post]) -> None:
        if run.attempt == 1:
            session.add(Author(name="a", books=[Book(title="one"), Book(title="two")]))
            return
        author = session.get(Author, "a")
        assert author is not None
        assert sorted(book.title for book in author.books) == ["one", "two"]
        author.books[0].author = Author(name="b")

    inner = handler(work)

    async def twice_async(run: Run[Post]) -> None:
        await inner(run)
        object.__setattr__(run._job, "attempt", 2)
        await inner(run)
        object.__setattr__(run._job, "attempt", 1)

    def twice(run: Run[Post]) -> None:
        inner(run)
        object.__setattr__(run._job, "attempt", 2)
        inner(run)
        object.__setattr__(run._job, "attempt", 1)

    assert run_it(conn, dsn, twice_async if asyncio.iscoroutinefunction(inner) else twice) is None
    assert authors(conn) == ["a", "b"]
    assert value(conn, "SELECT count(DISTINCT author_name) FROM outbox.books") == 2


def test_a_session_is_over_with_its_block_and_its_handler(conn: Conn, dsn: str) -> None:
    kept: list[Any] = []

    async def work(run: Run[Post]) -> None:
        async with step_session(run) as session:
            session.add(Author(name="a"))
        with pytest.raises(HandlerError, match="has ended: use it within its block"):
            await session.get(Author, "a")
        leaked = step_session(run)
        kept.extend([leaked, await leaked.__aenter__()])

    async def run_and_use() -> None:
        from outbox.testing import drain_async

        await drain_async(pipeline, dsn)
        with pytest.raises(HandlerError, match=r"stage p\.work has ended"):
            await kept[1].get(Author, "a")

    pipeline = deployed(conn, one_stage(work, transaction=True))
    pipeline.submit(conn, "a", Post())
    asyncio.run(run_and_use())
    assert status_of(conn, "a") == "DONE"


def test_a_job_that_was_taken_away_gets_no_more_statements_through(conn: Conn, dsn: str) -> None:
    raised: list[str] = []

    async def work(run: Run[Post]) -> None:
        async with step_session(run) as session:
            session.add(Author(name="a"))
            await session.flush()
            run._job.take_away("its lease is over")
            try:
                await session.get(Author, "b")
            except LeaseLost as error:
                raised.append(str(error))
                raise

    run_it(conn, dsn, work)
    assert len(raised) == 1
    assert authors(conn) == []


def test_a_lost_connection_in_the_middle_costs_the_attempt_and_the_next_one_is_whole(
    conn: Conn, dsn: str, admin_dsn: str, handler: Make
) -> None:
    def work(session: Session, run: Run[Post]) -> None:
        session.add(Author(name=f"{run.attempt}"))
        session.flush()
        if run.attempt == 1:
            pid = session.scalar(select(func.pg_backend_pid()))
            with psycopg.connect(admin_dsn, autocommit=True) as admin:
                admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            session.add(Author(name="lost"))

    assert run_it(conn, dsn, handler(work), retry=QUICK) is None
    assert (status_of(conn, "a"), authors(conn)) == ("DONE", ["2"])


def test_listeners_to_the_commit_hear_the_steps_own(conn: Conn, dsn: str, handler: Make) -> None:
    heard: list[Any] = []

    def work(session: Session, run: Run[Post]) -> None:
        event.listen(session, "after_commit", lambda _: heard.append(("after", authors(conn))))
        event.listen(session, "before_commit", lambda _: session.add(Author(name="of the listener")))
        event.listen(session, "after_rollback", lambda _: heard.append("rolled back"))
        session.add(Author(name=f"{run.attempt}"))
        if run.attempt == 1:
            raise ValueError("not yet")

    assert run_it(conn, dsn, handler(work), retry=QUICK) is None
    assert heard == ["rolled back", ("after", ["2", "of the listener"])]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "LONGEST", 60.0)
    monkeypatch.setattr(sharing, "FIRST", 50)


@pytest.mark.usefixtures("shared")
def test_steps_that_share_a_commit_fail_alone_and_may_have_savepoints(conn: Conn, dsn: str, handler: Make) -> None:
    heard: list[Any] = []
    called: list[str] = []

    def work(session: Session, run: Run[Post]) -> None:
        called.append(run.entity_id)
        event.listen(session, "after_commit", lambda _: heard.append((run.entity_id, authors(conn))))
        session.execute(sqlalchemy.text("SET LOCAL TimeZone = 'Asia/Tokyo'")) if run.entity_id == "0" else None
        assert (session.scalar(select(func.current_setting("TimeZone"))) == "Asia/Tokyo") == (run.entity_id == "0")
        session.add(Author(name=run.entity_id))
        with pytest.raises(IntegrityError), session.begin_nested():
            session.add(Book(title="of nobody", author_name="nobody"))
        if run.entity_id == "2":
            session.flush()
            raise ValueError("not this one")
        if run.entity_id == "3":
            session.add(Author(name="0"))

    pipeline = deployed(conn, one_stage(handler(work), transaction=True, share=50, retry=LATER))
    pipeline.submit_many(conn, ((str(n), Post()) for n in range(6)))
    drain(pipeline, dsn, concurrency=1)
    assert called == list("012345"), "each once, and in one transaction"
    assert heard == [(n, ["0", "1", "4", "5"]) for n in "0145"]
    assert (
        value(conn, "SELECT count(DISTINCT xmin::text) FROM outbox.workflow_states WHERE current_status = 'DONE'") == 1
    )
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE error IS NOT NULL") == 2


def test_any_run_of_a_batch_has_the_session_of_all(conn: Conn, dsn: str, handler: Make) -> None:
    def work(session: Session, runs: list[Run[Post]]) -> None:
        session.add_all(Author(name=run.entity_id) for run in runs)

    pipeline = deployed(conn, one_stage(handler(work), transaction=True, batch=10))
    pipeline.submit_many(conn, ((str(n), Post()) for n in range(3)))
    drain(pipeline, dsn)
    assert authors(conn) == ["0", "1", "2"]


def test_ticks_have_sessions(conn: Conn, dsn: str, handler: Make) -> None:
    def work(session: Session, tick: Tick) -> None:
        session.add(Author(name=tick.schedule))

    pipeline: Pipeline[Post] = Pipeline("clock", data=Post, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to="DONE")(lambda run: None)
    pipeline.every("0 0 1 1 *", name="look")(handler(work))
    deployed(conn, pipeline)
    conn.execute("UPDATE outbox.schedules SET next_at = now() - interval '1 minute'")
    drain(pipeline, dsn)
    assert authors(conn) == ["clock.look"]


def test_deliveries_have_sessions(conn: Conn, dsn: str, handler: Make) -> None:
    attempts: list[int] = []

    def work(session: Session, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        session.add(Author(name=delivery.payload["name"]))
        if len(attempts) == 1:
            session.add(Book(title="of nobody", author_name="nobody"))

    handling = Handling(Inbox("crm"), "q", handler(work), QUICK, 60.0, Slots(1), Service("Consumer"))
    arrival = Arrival("t", b'{"name": "sarah"}', {}, str(uuid7()))

    async def receive() -> None:
        receiver = Receiver(dsn, handling)
        try:
            assert await receiver.receive(arrival)
            assert await receiver.receive(arrival)
        finally:
            await receiver.close()

    asyncio.run(receive())
    assert (attempts, authors(conn)) == ([1, 2], ["sarah"])
    assert value(conn, "SELECT count(*) FROM outbox.inbox AS i, outbox.authors AS a WHERE i.xmin = a.xmin") == 1


def test_an_attempt_whose_time_is_over_writes_nothing(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        async with step_session(run) as session:
            session.add(Author(name=f"{run.attempt}"))
            await session.flush()
            if run.attempt == 1:
                await session.execute(sqlalchemy.text("SELECT pg_sleep(60)"))

    pipeline = deployed(conn, one_stage(work, transaction=True, retry=LATER, timeout=0.2))
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    assert "TimeoutError" in value(conn, "SELECT error FROM outbox.jobs")
    conn.execute("UPDATE outbox.jobs SET run_at = now()")
    drain(one_stage(work, transaction=True, retry=LATER, timeout=60), dsn)
    assert authors(conn) == ["2"]


def test_wrong_steps_and_options_are_refused_by_name(conn: Conn, dsn: str) -> None:
    told: list[str] = []

    def refused(open_: Callable[..., Any], run: Any, **options: Any) -> None:
        with pytest.raises((HandlerError, InvalidInput)) as error, open_(run, **options):
            pass
        told.append(str(error.value))

    async def refused_async(run: Any, **options: Any) -> None:
        with pytest.raises((HandlerError, InvalidInput)) as error:
            async with step_session(run, **options):
                pass
        told.append(str(error.value))

    async def work(run: Run[Post]) -> None:
        refused(sync_step_session, run)
        await refused_async([run])
        await refused_async(run.connection)
        await refused_async(run, binds={})

    def plain(run: Run[Post]) -> None:
        asyncio.run(refused_async(run))

    async def without(run: Run[Post]) -> None:
        await refused_async(run)

    for n, (handle, transaction_) in enumerate([(work, True), (plain, True), (without, False)]):
        pipeline: Pipeline[Post] = Pipeline(f"p{n}", data=Post, initial="NEW", final={"DONE"})
        pipeline.stage("work", on="NEW", to="DONE", retry=LATER, transaction=transaction_)(handle)
        deployed(conn, pipeline)
        pipeline.submit(conn, "a", Post())
        drain(pipeline, dsn)
    assert told == [
        "stage p0.work is an async function: use step_session",
        "run: must be a run of the list, not list",
        "run: must be the Run, Tick or Delivery of the function, not AsyncConnection",
        "binds: the session of stage p0.work has the step's connection and transaction",
        "stage p1.work is a plain function: use sync_step_session",
        "stage p2.work has no connection: define it with transaction=True",
    ]


def test_the_connection_stays_as_the_handler_has_made_it(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        run.connection.row_factory = dict_row
        async with step_session(run, expire_on_commit=False, info={"x": 1}) as session:
            assert session.info == {"x": 1}
            session.add(Author(name="a"))
            assert (await session.scalars(select(Author.name))).all() == ["a"]
            assert [name async for name in await session.stream_scalars(select(Author.name))] == ["a"]
            cursor = await run.connection.execute("SELECT name FROM outbox.authors")
            assert await cursor.fetchall() == [{"name": "a"}]
        async with step_session(run) as session:
            with pytest.raises(psycopg.ProgrammingError, match="can't change 'autocommit' now"):
                await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})

    assert run_it(conn, dsn, work) is None
    assert "outbox" not in str(registry.impls)


def test_what_the_page_says_works_as_printed(conn: Conn, dsn: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "sqlalchemy.md").read_text(encoding="utf-8")
    first, second, tables = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "shop"}
    sys.modules["shop"] = types.ModuleType("shop")  # where SQLAlchemy and pydantic look for the annotations
    try:
        for block in (first, second, tables):
            exec(compile(block, "docs/sqlalchemy.md", "exec", dont_inherit=True), names)
            sys.modules["shop"].__dict__.update(names)
        orders = names["orders"]
        orders.allow("DONE_BEFORE", to="AGAIN")
        deployed(conn, orders)
        conn.execute(
            'CREATE TABLE outbox.invoices ("order" text PRIMARY KEY, total int NOT NULL, paid boolean NOT NULL)'
        )
        conn.execute(
            "ALTER ROLE CURRENT_USER IN DATABASE "
            + value(conn, "SELECT current_database()")
            + " SET search_path = outbox"
        )
        orders.submit(conn, "a", {"total": 5})
        drain(orders, dsn)
        assert conn.execute('SELECT "order", total, paid FROM outbox.invoices').fetchall() == [("a", 5, True)]
        query = (
            "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata) VALUES (%s, %s, %s, %s)"
        )
        conn.execute("UPDATE outbox.invoices SET paid = false")
        conn.execute(query, ("orders", "b", "AGAIN", '{"total": 7}'))
        drain(orders, dsn)
        assert status_of(conn, "a") == status_of(conn, "b") == "DONE"
        engine = sqlalchemy.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
        with Session(engine) as session:
            assert session.execute(names["unpaid"]).all() == [("a", "DONE")]
    finally:
        del sys.modules["shop"]
