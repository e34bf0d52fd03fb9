"""Lends a step's transaction to Django: within `in_step(run)`, what the ORM writes commits with the step.

For the time of the block, the alias leads to a connection of its own kind, which works on the step's psycopg connection
and neither commits, rolls back nor closes. Django's own connection of the thread stays as it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn, cast

from django.conf import settings
from django.db import connections
from django.db.backends.postgresql.psycopg_any import get_adapters_template
from django.db.transaction import Atomic, TransactionManagementError
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus

from ..definition.run import Run
from ..definition.schedule import Tick
from ..definition.step_transaction import Hook, transaction_of
from ..errors import HandlerError
from ..messages.delivery import Delivery
from . import project
from .stale import close_stale

Step = Run[Any] | Tick | Delivery


@contextmanager
def in_step(run: Step, *, using: str | None = None) -> Iterator[None]:
    """Has the ORM use the transaction of a plain handler, a tick or a delivery, for the alias `using`.

    The default is the alias that OUTBOX names. What is written in the block commits with the step, or not at all.
    `atomic` makes a savepoint. `commit()`, `rollback()`, `set_autocommit` and `atomic(durable=True)` raise an error.
    Functions of `transaction.on_commit` are called after the step's COMMIT.

    If the block raises, the step fails, even if the handler catches the error: use `atomic` for what may fail. Raises
    HandlerError if the stage has no `transaction=True`, or the function is async.
    """
    step = transaction_of(run)
    if step.is_async:
        raise HandlerError(
            f"{step.what} is async, and Django's ORM needs a plain connection: write it with def, not async def"
        )
    alias = using or project.load().database
    before = connections[alias]
    lent = _lent(cast("Hashable", type(before)))(run, before)
    connections[alias] = lent
    try:
        yield
        lent.finish()
    except BaseException as error:
        step.refuse(f"a block of in_step has ended with {type(error).__name__}, and the handler went on: {error}")
        raise
    finally:
        lent.connection = None
        connections[alias] = before
    for _, function, _ in lent.run_on_commit:
        step.on_commit(_after_commit(function))


@cache
def _lent(kind: Any) -> Any:
    """Returns the kind of connection that an alias has, PostGIS' for example, as one that is lent."""

    class Lent(kind):
        """A connection in the transaction of a step, which alone ends it."""

        def __init__(self, run: Step, usual: Any) -> None:
            super().__init__(usual.settings_dict, usual.alias)
            self._run = run
            self._what = transaction_of(run).what
            self.execute_wrappers = usual.execute_wrappers
            self.force_debug_cursor = usual.force_debug_cursor
            self.queries_log = usual.queries_log
            self.connection = transaction_of(run).connection
            self.in_atomic_block = True
            self.atomic_blocks.append(Atomic(usual.alias, savepoint=True, durable=True))
            self._configure_timezone(self.connection)  # by which Django reads times

        def create_cursor(self, name: str | None = None) -> Any:
            """Makes a cursor of Django's, which sees values as Django does. `run.connection` stays as it is."""
            conn = transaction_of(self._run).connection  # raises LeaseLost if the job was taken away
            kept = conn.cursor_factory, conn._adapters
            params = self.get_connection_params()
            conn.cursor_factory = params["cursor_factory"]
            conn._adapters = AdaptersMap(get_adapters_template(settings.USE_TZ, self.timezone))
            try:
                cursor = super().create_cursor(name)
            finally:
                conn.cursor_factory, conn._adapters = kept
            if name:
                cursor._withhold = False  # it ends with the step
            return cursor

        def finish(self) -> None:
            """Raises an error if what was written can't be committed."""
            if self.connection.info.transaction_status is TransactionStatus.INERROR or self.needs_rollback:
                raise HandlerError(
                    f"a statement in {self._what} has failed, so its transaction can't be committed: "
                    "put what may fail in a block of atomic()"
                ) from self.rollback_exc

        def commit(self) -> NoReturn:
            self._refuse("commit()")

        def rollback(self) -> NoReturn:
            self._refuse("rollback()")

        def close(self) -> NoReturn:
            self._refuse("close()")

        def set_autocommit(self, *_: Any, **__: Any) -> NoReturn:
            self._refuse("set_autocommit()")

        def close_if_unusable_or_obsolete(self) -> None:
            """Does nothing: `close_old_connections` is for others."""

        def _refuse(self, what: str) -> NoReturn:
            raise TransactionManagementError(
                f"{what} in {self._what}: its transaction commits with the step, or is rolled back if the handler "
                "raises. Use atomic() for a part that may fail"
            )

    return Lent


def _after_commit(function: Hook) -> Hook:
    """Returns what calls a function of `transaction.on_commit`, and sees to the connections that it has used."""

    def call() -> None:
        try:
            function()
        finally:
            close_stale()

    call.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)
    return call
