"""Defines what a function of the user's has of the transaction that commits with its outcome: a step's transaction.

A handler with `transaction=True`, a scheduled function and a consumer's handler have one each time they are called. The
doors to ORMs (outbox/sqlalchemy.py, outbox/django/) lend its connection: `transaction_of(run)` returns it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from ..errors import HandlerError, InvalidInput
from ..process.forks import leave_if_forked
from ..process.service import is_cancelled
from ..texts import printable
from .reasons import describe, from_handler, log_with

Hook = Callable[[], Any]


class StepTransaction:
    """The transaction of one call of a user's function. `what` names the function: "stage shop.pay".

    `connection` is the psycopg connection, for as long as the function runs. Afterwards others have it. `hooks` are to
    be called after the COMMIT. `refused`: why the step fails, whatever the function returns.
    """

    __slots__ = ("_connection", "hooks", "refused", "what")

    def __init__(self, connection: Any, what: str) -> None:
        self._connection, self.what = connection, what
        self.hooks: list[Hook] = []
        self.refused: str | None = None

    @property
    def connection(self) -> Any:
        """Returns the connection. Raises HandlerError if the function has ended."""
        if self._connection is None:
            raise HandlerError(f"{self.what} has ended, and its transaction with it: use it while the function runs")
        return self._connection

    @property
    def is_async(self) -> bool:
        """Whether the function is async, and its connection, too."""
        return isinstance(self.connection, psycopg.AsyncConnection)

    def on_commit(self, function: Hook) -> None:
        """Has a function called after the COMMIT: see `Run.on_commit`."""
        if not callable(function):
            raise InvalidInput("function", f"must be a function without arguments, not {type(function).__name__}")
        if not self.is_async and inspect.iscoroutinefunction(function):
            raise InvalidInput("function", f"{self.what} is a plain function: what it has called can't be async")
        self.hooks.append(function)

    def refuse(self, why: str) -> None:
        """Has the step fail with this reason, whatever the function returns: what it wrote isn't all that it meant."""
        self.refused = self.refused or why

    def end(self) -> None:
        """Takes the connection from the function, which has returned."""
        self._connection = None

    def require(self) -> None:
        """Raises HandlerError if the step was refused."""
        if self.refused is not None:
            raise HandlerError(self.refused)


def transaction_of(step: object) -> StepTransaction:
    """Returns the transaction of a Run, a Tick or a Delivery.

    Raises InvalidInput if it is something else, HandlerError if it has none or has ended, and LeaseLost if the job was
    taken away.
    """
    found = getattr(step, "_in_transaction", None)
    if found is None:
        wanted = "a run of the list" if isinstance(step, Sequence) else "the Run, Tick or Delivery of the function"
        raise InvalidInput("run", f"must be {wanted}, not {type(step).__name__}")
    transaction: StepTransaction = found()
    return transaction


async def call_after_commit(hooks: Sequence[Hook], what: str, timeout: float, log: logging.Logger) -> None:
    """Calls in the event loop what a step wants called after its COMMIT. Errors are logged, never raised.

    The functions have `timeout` seconds together.
    """
    try:
        async with asyncio.timeout(timeout):
            for hook in hooks:
                with _logged(hook, what, log):
                    result = hook()
                    if inspect.isawaitable(result):
                        await result
    except (TimeoutError, asyncio.CancelledError):
        log.error("%s: what was to be called after its commit did not end, and was cancelled", printable(what))


def call_after_commit_sync(hooks: Sequence[Hook], what: str, log: logging.Logger) -> None:
    """Does what `call_after_commit` does, in the calling thread. Nothing there can be cancelled."""
    for hook in hooks:
        with _logged(hook, what, log):
            hook()


@contextmanager
def _logged(hook: Hook, what: str, log: logging.Logger) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        name = getattr(hook, "__qualname__", type(hook).__qualname__)
        told = "%s: committed, but %s, called after the commit, failed: %s"
        log_with(log, logging.ERROR, from_handler(error), told, printable(what), name, printable(describe(error)))
    finally:
        leave_if_forked()
