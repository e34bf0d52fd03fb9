"""Calls a user's function in a transaction: a stage's handler, a schedule's function, a consumer's handler.

The caller passes a generator of steps (see steps.py): Begin, statements, Call or TakeTurn, Commit. `run` and
`run_async` take them on a connection and differ only by `await`. If the generator ends without Commit, or with an
error, its transaction is rolled back.

The connection must be in autocommit mode. Otherwise psycopg would send a BEGIN of its own while ours is still on its
way.

`clean` is a statement that forgets what a function has left in the session. It is sent with the COMMIT, and costs no
round trip of its own; after a transaction that was rolled back it does. Behind a pooler it is `inside` the transaction,
or in one message with the ROLLBACK, which keeps no advisory lock and no PREPARE from staying: after it, the session is
somebody else's. If it answers that the server is read-only now, the connection is closed: another server is the
primary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from ..process.forks import leave_if_forked
from .connection_group import READ_ONLY
from .session import reclaim
from .steps import Call, Statement, perform, perform_async
from .turns import Turn

T = TypeVar("T")

_ENCODING, _PUT_BACK = "utf-8", b"SET LOCAL client_encoding = 'UTF8'"


class Begin(NamedTuple):
    """Begins the transaction and runs its first statement, in one round trip. Its answer is the statement's rows."""

    first: Statement


class TakeTurn(NamedTuple):
    """Calls a function that shares the transaction; `opening` precedes what it sends (see turns.py).

    Its answer is what the function returned, and its turn.
    """

    function: Callable[[], Any]
    opening: bytes | None = None


class Commit(NamedTuple):
    """Runs the last statements and commits, in one round trip. If one of them fails, the COMMIT has no effect."""

    last: tuple[Statement, ...] = ()


class Clean(NamedTuple):
    """Forgets what a function has left in the session: after its transaction, or as its last statement."""

    statement: Statement
    inside: bool = False


Step = Begin | Call | TakeTurn | Commit | Statement
Steps = Generator[Step, Any, T]


def run(conn: psycopg.Connection[Any], steps: Steps[T], clean: Clean | None = None) -> T:
    """Takes the steps on a sync connection, in the calling thread; returns what they return."""
    transaction, block = psycopg.Transaction(conn, force_rollback=True), ExitStack()
    threshold, dirty = conn.prepare_threshold, False

    def take(step: Step) -> Any:
        nonlocal dirty
        with _first_error():
            match step:
                case Begin(first):
                    with conn.pipeline():
                        block.enter_context(transaction)
                        cursor = conn.execute(*first)
                    return cursor.fetchall()
                case Call(function):
                    dirty = True
                    try:
                        return function()
                    finally:
                        leave_if_forked()
                        reclaim(conn, threshold)
                case TakeTurn(function, opening):
                    dirty = True
                    try:
                        with Turn(conn, opening) as turn:
                            try:
                                returned = function()
                            finally:
                                turn.settle()
                    finally:
                        leave_if_forked()
                        reclaim(conn, threshold)
                    return returned, turn
                case Commit(last):
                    if conn.info.encoding != _ENCODING:  # the function has set one in which our texts can't be written
                        conn.execute(_PUT_BACK)
                    with conn.pipeline() if last or clean else nullcontext():
                        for statement in last:
                            conn.execute(*statement)
                        if clean and clean.inside:
                            conn.execute(*clean.statement)
                        transaction.force_rollback = False
                        block.close()
                        if clean and not clean.inside:
                            conn.execute(*clean.statement)
                    dirty = False
                case _:
                    cursor = conn.execute(*step)
                    return cursor.fetchall() if cursor.description else []

    try:
        return perform(steps, take)
    except psycopg.errors.ReadOnlySqlTransaction:
        dirty = True
        raise
    finally:
        with suppress(psycopg.Error):
            if dirty and clean and clean.inside and _can_roll_back(conn):
                conn.execute(_rollback(psycopg.ClientCursor(conn), clean))
                block.pop_all()  # it has ended
                conn._num_transactions = 0
            block.close()
        try:
            conn.rollback()  # a commit that was refused; else there is nothing to do
            if dirty and clean and not clean.inside:
                _require_writable(conn.execute(*clean.statement).fetchall())
        except psycopg.Error:
            # Read-only now, or the function has left a block open in which psycopg neither commits nor rolls back.
            conn.close()


async def run_async(conn: psycopg.AsyncConnection[Any], steps: Steps[T], clean: Clean | None = None) -> T:
    """Takes the steps on an async connection, in the event loop; returns what they return."""
    transaction, block = psycopg.AsyncTransaction(conn, force_rollback=True), AsyncExitStack()
    threshold, dirty = conn.prepare_threshold, False

    async def take(step: Step) -> Any:
        nonlocal dirty
        with _first_error():
            match step:
                case Begin(first):
                    async with conn.pipeline():
                        await block.enter_async_context(transaction)
                        cursor = await conn.execute(*first)
                    return await cursor.fetchall()
                case Call(function, timeout):
                    dirty = True
                    try:
                        return await _within(timeout, function())
                    finally:
                        leave_if_forked()
                        reclaim(conn, threshold)
                case TakeTurn(function, opening):
                    dirty = True
                    try:
                        with Turn(conn, opening) as turn:
                            try:
                                returned = await function()
                            finally:
                                await turn.settle_async()
                    finally:
                        leave_if_forked()
                        reclaim(conn, threshold)
                    return returned, turn
                case Commit(last):
                    if conn.info.encoding != _ENCODING:  # the function has set one in which our texts can't be written
                        await conn.execute(_PUT_BACK)
                    async with conn.pipeline() if last or clean else nullcontext():
                        for statement in last:
                            await conn.execute(*statement)
                        if clean and clean.inside:
                            await conn.execute(*clean.statement)
                        transaction.force_rollback = False
                        await block.aclose()
                        if clean and not clean.inside:
                            await conn.execute(*clean.statement)
                    dirty = False
                case _:
                    cursor = await conn.execute(*step)
                    return await cursor.fetchall() if cursor.description else []

    try:
        return await perform_async(steps, take)
    except psycopg.errors.ReadOnlySqlTransaction:
        dirty = True
        raise
    finally:
        with suppress(psycopg.Error):
            if dirty and clean and clean.inside and _can_roll_back(conn):
                await conn.execute(_rollback(psycopg.AsyncClientCursor(conn), clean))
                block.pop_all()  # it has ended
                conn._num_transactions = 0
            await block.aclose()
        try:
            await conn.rollback()  # a commit that was refused or cancelled; else there is nothing to do
            if dirty and clean and not clean.inside:
                _require_writable(await (await conn.execute(*clean.statement)).fetchall())
        except psycopg.Error:
            # Read-only now, or the function has left a block open in which psycopg neither commits nor rolls back.
            await conn.close()


async def _within(timeout: float | None, result: Awaitable[Any]) -> Any:
    if timeout is None:
        return await result
    try:
        async with asyncio.timeout(timeout) as deadline:
            return await result
    except TimeoutError as error:
        if not deadline.expired():
            raise
        # The traceback shows where the function was cancelled, which is where it hung.
        hung = error.__cause__.__traceback__ if error.__cause__ else None
        raise TimeoutError(f"not done within {timeout:g} s").with_traceback(hung) from None


def _can_roll_back(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether a connection is in our transaction alone. Any other is closed, and the pooler ends its session."""
    in_ours = conn._num_transactions <= 1 and conn._pipeline is None  # 0 after a COMMIT that was not reached
    return in_ours and conn.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)


def _rollback(cursor: psycopg.ClientCursor[Any] | psycopg.AsyncClientCursor[Any], clean: Clean) -> bytes:
    """Returns a ROLLBACK and what cleans the session as one message: a pooler takes the session back after it."""
    return b"ROLLBACK; " + cursor.mogrify(*clean.statement).encode()


def _require_writable(cleaned: list[tuple[Any, ...]]) -> None:
    ((_, read_only),) = cleaned
    if read_only:
        raise psycopg.errors.ReadOnlySqlTransaction(READ_ONLY)


@contextmanager
def _first_error() -> Iterator[None]:
    """Raises the error that aborted a pipeline. psycopg may instead raise that a later statement was not run."""
    try:
        yield
    except psycopg.errors.PipelineAborted as aborted:
        error: psycopg.Error = aborted
        while isinstance(error, psycopg.errors.PipelineAborted) and isinstance(error.__context__, psycopg.Error):
            error = error.__context__
        raise error from None
