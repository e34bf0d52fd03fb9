"""Lends a step's transaction to SQLAlchemy: what a session writes commits with the step, or not at all.

`step_session(run)` is for async functions, `sync_step_session(run)` for plain ones. The session is SQLAlchemy's own, on
the psycopg connection of the step. Its engine belongs to this module and opens no connection. Your own engine may be
on any driver, because models don't know of drivers.

The engine's dialect neither commits, rolls back nor closes. A session that was rolled back all the same, as by an error
in its flush, has lost part of what the function meant: the step then fails, even if the function catches the error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar, overload

from psycopg.rows import tuple_row
from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg, PGDialectAsync_psycopg, PGExecutionContext_psycopg
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import NullPool

from .definition.run import Run
from .definition.schedule import Tick
from .definition.step_transaction import StepTransaction, transaction_of
from .errors import HandlerError, InvalidInput
from .messages.delivery import Delivery

Step = Run[Any] | Tick | Delivery
S = TypeVar("S", bound=Session)
A = TypeVar("A", bound=AsyncSession)

_LENT = "outbox_lent"
"""The key under which a connection's `info` has what it was lent for."""

_MOST_FLUSHES = 100
"""How often the end of a step flushes what listeners to flushes add, as often as SQLAlchemy's commit does."""

_NOT_OURS = {"bind", "binds", "twophase", "join_transaction_mode", "autobegin"}
"""Options of a session that would take it out of the step's transaction."""


@overload
def step_session(run: Step, *, class_: type[A], **session_options: Any) -> AbstractAsyncContextManager[A]: ...
@overload
def step_session(run: Step, **session_options: Any) -> AbstractAsyncContextManager[AsyncSession]: ...
@asynccontextmanager
async def step_session(run: Step, *, class_: Any = AsyncSession, **session_options: Any) -> AsyncIterator[Any]:
    """Opens a session in the transaction of an async handler, a tick or a delivery.

    It is flushed at the end of the block, and commits with the step. `commit()` and `rollback()` raise HandlerError;
    `begin_nested()` makes a savepoint. Listeners to "after_commit" are called after the step's COMMIT. `class_` is the
    session's class, and `session_options` are its options, such as `expire_on_commit`.

    Raises HandlerError if the stage has no `transaction=True`, or the function is a plain one.
    """
    lent = _Lent(run, session_options, is_async=True)
    engine = AsyncEngine(lent.engine)
    with lent.at_hand():
        connection = await engine.connect()
    try:
        await connection.run_sync(lent.begin)
        session = class_(bind=connection, **session_options)
        lent.watch(session.sync_session)
        async with session:
            try:
                yield session
                await session.run_sync(lent.finish)
            except BaseException:
                await session.run_sync(lent.abandon)
                raise
            finally:
                lent.end(session.sync_session)
    finally:
        await connection.close()


@overload
def sync_step_session(run: Step, *, class_: type[S], **session_options: Any) -> AbstractContextManager[S]: ...
@overload
def sync_step_session(run: Step, **session_options: Any) -> AbstractContextManager[Session]: ...
@contextmanager
def sync_step_session(run: Step, *, class_: Any = Session, **session_options: Any) -> Iterator[Any]:
    """Opens a session in the transaction of a plain handler, a tick or a delivery, as `step_session` does."""
    lent = _Lent(run, session_options, is_async=False)
    with lent.at_hand():
        connection = lent.engine.connect()
    with connection:
        lent.begin(connection)
        session = class_(bind=connection, **session_options)
        lent.watch(session)
        with session:
            try:
                yield session
                lent.finish(session)
            except BaseException:
                lent.abandon(session)
                raise
            finally:
                lent.end(session)


class _Lent:
    """A step's connection, lent to one session."""

    def __init__(self, run: Step, session_options: dict[str, Any], *, is_async: bool) -> None:
        self._run = run
        self._step: StepTransaction = transaction_of(run)
        self._what, self._over = self._step.what, False
        if self._step.is_async != is_async:
            right = "an async function: use step_session" if not is_async else "a plain function: use sync_step_session"
            raise HandlerError(f"{self._what} is {right}")
        if wrong := sorted(_NOT_OURS & session_options.keys()):
            raise InvalidInput(wrong[0], f"the session of {self._what} has the step's connection and transaction")
        info = self._step.connection.info
        self.engine = _engine(is_async, info.host, info.port, info.dbname, info.user)

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Has the engine's pool get the step's connection."""
        token = _at_hand.set(self._step.connection)
        try:
            yield
        finally:
            _at_hand.reset(token)

    def begin(self, connection: Connection) -> None:
        """Begins to watch what goes through the connection."""
        dialect, driver = self.engine.dialect, self._step.connection
        if not dialect.is_known:  # type: ignore[attr-defined]
            chosen, driver.row_factory = driver.row_factory, tuple_row
            dialect.initialize(connection)
            driver.row_factory, dialect.is_known = chosen, True  # type: ignore[attr-defined]
        connection.info[_LENT] = self
        for when in ("before_execute", "before_cursor_execute"):  # the latter alone for SQL as text
            event.listen(connection, when, self._require_held)

    def watch(self, session: Session) -> None:
        """Has the session refuse to commit and to roll back."""
        session.rollback = self._rollback  # type: ignore[method-assign]
        event.listen(session, "before_commit", self._before_commit)
        event.listen(session, "after_transaction_end", self._after_transaction_end)

    def finish(self, session: Session) -> None:
        """Does what a commit does before it is sent."""
        if not session.is_active:
            raise HandlerError(self._rolled_back)
        while (nested := session.get_nested_transaction()) is not None:
            nested.commit()
        self._over = True
        session.dispatch.before_commit(session)
        for _ in range(_MOST_FLUSHES):
            session.flush()
            if session._is_clean():
                break
        if session.dispatch.after_commit:
            self._step.on_commit(lambda: session.dispatch.after_commit(session))

    def abandon(self, session: Session) -> None:
        """Forgets what the session has, after an error, with which the step fails even if the function catches it."""
        self.rolled_back()
        self._over = True
        Session.rollback(session)

    def end(self, session: Session) -> None:
        """Has the session refuse to begin again, because it would not be in the step's transaction."""
        self._over = True
        session.get_bind = self._ended  # type: ignore[method-assign]

    def rolled_back(self) -> None:
        """Has the step fail, because part of what it was to write is gone."""
        if not self._over:
            self._step.refuse(self._rolled_back)

    def refuse_commit(self) -> None:
        """Raises HandlerError, because the step commits."""
        raise HandlerError(
            f"the session of {self._what} commits with the step, when the function has returned: leave out commit(), "
            "and use begin_nested() for a part that may fail"
        )

    @property
    def _rolled_back(self) -> str:
        return (
            f"the session of {self._what} was rolled back, closed or left by an error, so the step can't be committed: "
            "let the error through, or use begin_nested() for a part that may fail"
        )

    def _rollback(self) -> None:
        raise HandlerError(
            f"the session of {self._what} can't be rolled back alone: raise an error, which rolls back the step, or "
            "use begin_nested() for a part that may fail"
        )

    def _before_commit(self, session: Session) -> None:
        if not self._over and not session.in_nested_transaction():
            self.refuse_commit()

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            self.rolled_back()

    def _require_held(self, *_: Any) -> None:
        transaction_of(self._run).connection  # noqa: B018 - it raises

    def _ended(self, *_: Any, **__: Any) -> Any:
        raise HandlerError(f"the session of {self._what} has ended: use it within its block")


_at_hand: ContextVar[Any] = ContextVar("outbox_at_hand")
"""The connection that the pool gets next."""


class _Plain(PGExecutionContext_psycopg):
    """Reads rows as SQLAlchemy expects them, whatever row factory the function has set on the connection."""

    def create_default_cursor(self) -> Any:
        return self._of_tuples(super().create_default_cursor())

    def create_server_side_cursor(self) -> Any:
        return self._of_tuples(super().create_server_side_cursor())  # type: ignore[no-untyped-call]

    def _of_tuples(self, cursor: Any) -> Any:
        getattr(cursor, "_cursor", cursor).row_factory = tuple_row
        return cursor


class _Dialect(PGDialect_psycopg):
    """Speaks to a connection that belongs to somebody else: it neither ends its transaction nor closes it."""

    supports_statement_cache = True
    execution_ctx_cls = _Plain
    is_known = False  # what the server is like

    def do_commit(self, dbapi_connection: Any) -> None:
        if lent := dbapi_connection.info.get(_LENT):
            lent.refuse_commit()

    def do_rollback(self, dbapi_connection: Any) -> None:
        if lent := dbapi_connection.info.get(_LENT):
            lent.rolled_back()

    def do_close(self, dbapi_connection: Any) -> None:
        pass

    def do_terminate(self, dbapi_connection: Any) -> None:
        pass


class _AsyncDialect(_Dialect, PGDialectAsync_psycopg):
    supports_statement_cache = True


@lru_cache(maxsize=20)
def _engine(is_async: bool, *database: object) -> Engine:
    """Returns the engine for the steps in one database: what it compiles is kept from one step to the next.

    What it knows of a server and of a user's schemas may be another thing elsewhere.
    """
    kind: Any = _AsyncDialect if is_async else _Dialect
    # What hstore is differs between databases: it is read as text.
    dialect = kind(dbapi=kind.import_dbapi(), use_native_hstore=False)

    def connect() -> Any:
        if not is_async:
            return _at_hand.get()
        return dialect.dbapi.connect(async_creator_fn=_get)

    pool = NullPool(connect, dialect=dialect, reset_on_return=None)
    return Engine(pool, dialect, make_url("postgresql+psycopg://"))


async def _get() -> Any:
    return _at_hand.get()
