"""A user's function in a transaction of ours: whatever it does, both colours come to the same end."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from outbox.database.steps import Call, Statement, perform, perform_async
from outbox.database.user_transaction import Begin, Commit, Steps, run, run_async

Conn = psycopg.Connection[Any]
Function = Callable[[Any], Any]
BEGIN: Statement = b"SELECT set_config('outbox.actor', 'test', true)", {}
DEFERRED = "effects_no_two"


@pytest.fixture(autouse=True)
def effects(conn: Conn) -> None:
    conn.execute("CREATE TABLE outbox.witness (n integer)")
    conn.execute(f"ALTER TABLE outbox.witness ADD CONSTRAINT {DEFERRED} UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")


def write(n: int) -> Statement:
    return b"INSERT INTO outbox.witness VALUES (%(n)s)", {"n": n}


def number_of(n: int) -> Statement:
    return b"SELECT n FROM outbox.witness WHERE n = %(n)s", {"n": n}


def calling(function: Function, conn: Any, *last: Statement, timeout: float | None = None) -> Steps[Any]:
    """Begins, calls the function with the connection, reads, and commits; tells what the function returned and the rows."""
    yield Begin(BEGIN)
    returned = yield Call(lambda: function(conn), timeout)
    rows = yield number_of(1)
    yield Commit(last)
    return returned, rows


@dataclass
class End:
    """What became of the steps, and of the connection that they were taken on."""

    result: Any
    closed: bool
    status: TransactionStatus | None
    rows: list[Any] | None = None


async def in_loop(dsn: str, make: Callable[[Any], Steps[Any]]) -> End:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        result: Any
        try:
            result = await run_async(conn, make(conn))
        except BaseException as error:
            result = error
        if conn.closed:
            return End(result, True, None)
        status = conn.info.transaction_status
        return End(result, False, status, await (await conn.execute("SELECT 7")).fetchall())


def in_thread(dsn: str, make: Callable[[Any], Steps[Any]]) -> End:
    with psycopg.connect(dsn, autocommit=True) as conn:
        result: Any
        try:
            result = run(conn, make(conn))
        except BaseException as error:
            result = error
        if conn.closed:
            return End(result, True, None)
        return End(result, False, conn.info.transaction_status, conn.execute("SELECT 7").fetchall())


class Colour:
    """Takes steps in one colour. What a function does is said once, as steps of its own."""

    def __init__(self, name: str, dsn: str, conn: Conn) -> None:
        self.name, self._dsn, self._conn = name, dsn, conn

    def take(self, make: Callable[[Any], Steps[Any]]) -> End:
        if self.name == "sync":
            return in_thread(self._dsn, make)
        return asyncio.run(in_loop(self._dsn, make))

    def call(self, function: Callable[[Any], Generator[Any, Any, Any]], *last: Statement) -> End:
        """Take the steps around a function that yields what is to be awaited in an async one."""

        def in_thread(conn: Any) -> Any:
            return perform(function(conn), lambda step: step)

        async def in_loop(conn: Any) -> Any:
            return await perform_async(function(conn), awaited)

        chosen = in_thread if self.name == "sync" else in_loop
        return self.take(lambda conn: calling(chosen, conn, *last))

    def numbers(self) -> list[int]:
        """What is committed."""
        return [n for (n,) in self._conn.execute("SELECT n FROM outbox.witness ORDER BY n")]


async def awaited(step: Any) -> Any:
    return await step if inspect.isawaitable(step) else step


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest, dsn: str, conn: Conn) -> Colour:
    return Colour(request.param, dsn, conn)


def as_before(end: End) -> bool:
    """Whether the connection is as good as before."""
    return not end.closed and end.status is TransactionStatus.IDLE and end.rows == [(7,)]


def writes(conn: Any) -> Generator[Any, Any, Any]:
    yield conn.execute(*write(1))
    return "done"


def test_what_the_function_wrote_is_committed(colour: Colour) -> None:
    end = colour.call(writes, write(2))
    assert end.result == ("done", [(1,)])
    assert colour.numbers() == [1, 2]
    assert as_before(end)


def test_what_a_function_wrote_that_raises_is_rolled_back(colour: Colour) -> None:
    wrong = ValueError("wrong")

    def raises(conn: Any) -> Generator[Any, Any, Any]:
        yield conn.execute(*write(1))
        raise wrong

    end = colour.call(raises)
    assert end.result is wrong
    assert colour.numbers() == []
    assert as_before(end)


def test_a_rollback_that_the_function_raises_is_an_error_as_any_other(colour: Colour) -> None:
    """Psycopg's own block would take it for its end, and what was not committed for done."""

    def raises(conn: Any) -> Generator[Any, Any, Any]:
        yield conn.execute(*write(1))
        raise psycopg.Rollback

    end = colour.call(raises)
    assert isinstance(end.result, psycopg.Rollback)
    assert colour.numbers() == []
    assert as_before(end)


def test_the_steps_may_catch_what_a_function_raises(colour: Colour) -> None:
    def fails(conn: Any) -> Any:
        raise ValueError("wrong")

    async def fails_in_loop(conn: Any) -> Any:
        raise ValueError("wrong")

    def make(conn: Any) -> Steps[str]:
        try:
            yield from calling(fails if colour.name == "sync" else fails_in_loop, conn)
        except ValueError as error:
            return f"caught {error}"
        return "nothing to catch"

    assert colour.take(make).result == "caught wrong"


def test_steps_that_end_without_a_commit_are_rolled_back(colour: Colour) -> None:
    def make(conn: Any) -> Steps[str]:
        yield Begin(BEGIN)
        yield write(1)
        return "no commit"

    end = colour.take(make)
    assert end.result == "no commit"
    assert colour.numbers() == []
    assert as_before(end)


@pytest.mark.parametrize("last", ["first", "last", "commit"])
def test_an_end_that_is_refused_commits_nothing_and_says_which_statement_it_was(colour: Colour, last: str) -> None:
    """The error is the culprit's, not that of the statements behind it."""
    divided: Statement = b"SELECT 1 / 0", {}
    ends = {"first": [divided, write(2)], "last": [write(2), divided], "commit": [write(1), BEGIN]}
    end = colour.call(writes, *ends[last])
    if last == "commit":
        assert isinstance(end.result, psycopg.errors.UniqueViolation)
        assert DEFERRED in str(end.result), "which COMMIT alone finds"
    else:
        assert isinstance(end.result, psycopg.errors.DivisionByZero)
    assert colour.numbers() == []
    assert as_before(end)


def test_a_begin_that_is_refused_is_the_first_statements_error(colour: Colour) -> None:
    def make(conn: Any) -> Steps[None]:
        yield Begin((b"SELECT 1 / 0", {}))
        raise AssertionError("it was refused")

    end = colour.take(make)
    assert isinstance(end.result, psycopg.errors.DivisionByZero)
    assert as_before(end)


def test_a_connection_that_is_lost_is_an_error_and_closed(colour: Colour, admin_dsn: str) -> None:
    def loses(conn: Any) -> Generator[Any, Any, Any]:
        yield conn.execute(*write(1))
        with psycopg.connect(admin_dsn, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", [conn.info.backend_pid])

    end = colour.call(loses)
    assert isinstance(end.result, psycopg.OperationalError)
    assert end.closed
    assert colour.numbers() == []


def test_a_function_that_commits_by_itself_is_told_not_to(colour: Colour) -> None:
    def commits(conn: Any) -> Generator[Any, Any, Any]:
        yield conn.execute(*write(1))
        yield conn.commit()

    end = colour.call(commits)
    assert isinstance(end.result, psycopg.ProgrammingError)
    assert "commit() forbidden within a Transaction" in str(end.result)
    assert colour.numbers() == []
    assert as_before(end)


@pytest.mark.parametrize(("ends", "committed"), [("COMMIT", [1, 2]), ("ROLLBACK", [2])])
def test_a_function_that_ends_the_transaction_by_sql_leaves_a_sound_connection(
    colour: Colour, ends: str, committed: list[int]
) -> None:
    """That it did is for a statement of the steps to find: a mark that is gone."""

    def finishes(conn: Any) -> Generator[Any, Any, Any]:
        yield conn.execute(*write(1))
        yield conn.execute(ends)

    end = colour.call(finishes, write(2))
    assert colour.numbers() == committed
    assert as_before(end)


def test_a_function_may_have_blocks_of_its_own(colour: Colour) -> None:
    def writes(conn: Any) -> Generator[Any, Any, Any]:
        block = conn.transaction()
        yield (block.__enter__ if colour.name == "sync" else block.__aenter__)()
        yield conn.execute(*write(1))
        yield (block.__exit__ if colour.name == "sync" else block.__aexit__)(None, None, None)

    end = colour.call(writes)
    assert end.result == (None, [(1,)])
    assert colour.numbers() == [1]
    assert as_before(end)


def test_a_block_that_the_function_leaves_open_costs_the_connection(colour: Colour) -> None:
    """Left as it is, the next transaction on it would be a savepoint in this one, and never committed."""
    left = []

    def leaves_open(conn: Any) -> Generator[Any, Any, Any]:
        left.append(conn.transaction())
        yield (left[0].__enter__ if colour.name == "sync" else left[0].__aenter__)()
        yield conn.execute(*write(1))

    end = colour.call(leaves_open)
    assert isinstance(end.result, psycopg.transaction.OutOfOrderTransactionNesting)
    assert end.closed
    assert colour.numbers() == []


@pytest.mark.parametrize("raises", [False, True])
def test_rows_and_cursors_that_the_function_chose_are_its_own(colour: Colour, raises: bool) -> None:
    cursors = {"sync": psycopg.ClientCursor, "async": psycopg.AsyncClientCursor}

    def chooses(conn: Any) -> Generator[Any, Any, Any]:
        conn.row_factory, conn.cursor_factory = dict_row, cursors[colour.name]
        yield conn.execute(*write(1))
        if raises:
            raise ValueError("wrong")

    end = colour.call(chooses)
    if raises:
        assert isinstance(end.result, ValueError)
    else:
        assert end.result == (None, [(1,)]), "rows of the steps are tuples"
    assert as_before(end)


@pytest.mark.parametrize("error", [StopIteration(1), GeneratorExit(), SystemExit(3)], ids=lambda it: type(it).__name__)
def test_no_error_of_a_function_is_taken_for_the_end_of_the_steps(colour: Colour, error: BaseException) -> None:
    def raises(conn: Any) -> Any:
        raise error

    async def raises_in_loop(conn: Any) -> Any:
        raise error

    def make(conn: Any) -> Steps[str]:
        try:
            yield from calling(raises if colour.name == "sync" else raises_in_loop, conn)
        except BaseException as raised:
            return repr(raised.__cause__ or raised)
        return "nothing was raised"

    assert colour.take(make).result == repr(error)
    assert colour.numbers() == []


# What only an async function meets.


def test_an_async_function_that_takes_too_long_is_cancelled_and_rolled_back(dsn: str, conn: Conn) -> None:
    async def sleeps(conn: Any) -> None:
        await conn.execute(*write(1))
        await asyncio.sleep(60)

    end = asyncio.run(in_loop(dsn, lambda conn: calling(sleeps, conn, timeout=0.05)))
    assert isinstance(end.result, TimeoutError)
    assert str(end.result) == "not done within 0.05 s"
    assert conn.execute("SELECT n FROM outbox.witness").fetchall() == []
    assert as_before(end)


def test_a_timeout_of_the_functions_own_is_its_own(dsn: str) -> None:
    own = TimeoutError("the model did not answer")

    async def raises(conn: Any) -> None:
        raise own

    assert asyncio.run(in_loop(dsn, lambda conn: calling(raises, conn, timeout=60))).result is own


@pytest.mark.parametrize("where", ["in the function", "at the commit"])
def test_a_task_that_is_cancelled_leaves_nothing(
    dsn: str, conn: Conn, connect: Callable[..., Conn], where: str
) -> None:
    """Cancelled at the commit, it is a deferred constraint that waits: COMMIT is sent, and has not been answered."""
    holding = connect(autocommit=False)
    holding.execute(*write(1))

    async def act() -> None:
        begun = asyncio.Event()

        async def sleeps(conn: Any) -> None:
            begun.set()
            await asyncio.sleep(60)

        async def returns(conn: Any) -> None:
            begun.set()

        async def taking() -> End:
            function: Callable[[Any], Awaitable[None]] = sleeps if where == "in the function" else returns
            return await in_loop(dsn, lambda conn: calling(function, conn, write(1)))

        task = asyncio.create_task(taking())
        await begun.wait()
        if where == "at the commit":
            while not waits_for_a_lock(conn):
                await asyncio.sleep(0.01)
        task.cancel()
        end = await task
        assert isinstance(end.result, asyncio.CancelledError)
        assert end.closed or as_before(end)

    asyncio.run(asyncio.wait_for(act(), 30))
    holding.rollback()
    assert conn.execute("SELECT n FROM outbox.witness").fetchall() == []


def waits_for_a_lock(conn: Conn) -> bool:
    found = conn.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    return found == (1,)
