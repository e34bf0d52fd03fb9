"""Drains in the caller's own transaction: each step is a savepoint, and nothing is committed."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from ..database import session
from ..database.drivers.of_django import Django
from ..database.drivers.recognise import door
from ..database.statements import text_array
from ..database.steps import Call, Statement, perform, perform_async
from ..database.user_transaction import Begin, Commit
from ..definition.run import Run
from ..definition.step_transaction import call_after_commit, call_after_commit_sync
from ..engine import blobs, checkpoint
from ..engine.handle import handle_async, handle_sync
from ..engine.job import Job, Outcome, fail
from ..process.service import Service
from .connections import plain, require_color
from .sequence import AfterCommit, Guard, Handle, InTransaction, PutBackSettings, Release, Rest, Sequence, Step, Undo

log = logging.getLogger("outbox.worker")

_ENGINES = tuple(f"outbox.{name}" for name in ("actor", "reason", "worker", "claim", "waits", "decision", "early"))
"""What the engine's statements set for the triggers, until the end of a transaction."""

_OWN = (
    "client_encoding",
    *session.READING,
    "search_path",
    "row_security",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
)
"""Settings that are the application's, and that the engine's statements, or a handler, change in a transaction."""


class Kept:
    """Keeps results of `run.once` in the caller's transaction, as a worker keeps them in the database.

    `rows` runs a statement in the thread of a plain handler, `rows_async` in the event loop of an async one.
    """

    def __init__(
        self, rows: Callable[[Statement], list[Any]], rows_async: Callable[[Statement], Awaitable[list[Any]]]
    ) -> None:
        self._rows, self._rows_async = rows, rows_async
        self._written: list[Statement] = []

    def once(self, job: Job, key: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Does what `Checkpoints.once` does."""
        steps = checkpoint.once(job, key, function, partial(function, *args, **kwargs))
        return perform_async(steps, self._take_async) if job.stage.is_async else perform(steps, self._take)

    def store(self, job: Job, content: Any) -> Any:
        """Does what `Checkpoints.store` does."""
        steps = blobs.store(job, content)
        return perform_async(steps, self._take_async) if job.stage.is_async else perform(steps, self._take)

    def load(self, job: Job, blob: Any) -> Any:
        """Does what `Checkpoints.load` does."""
        steps = blobs.load(blob)
        return perform_async(steps, self._take_async) if job.stage.is_async else perform(steps, self._take)

    def stream(self, job: Job, blob: Any) -> Any:
        """Does what `Checkpoints.stream` does."""
        return blobs.stream_async(blob, self._take_async) if job.stage.is_async else blobs.stream(blob, self._take)

    def children(self, job: Job, pipeline: Any) -> Any:
        """Does what `Checkpoints.children` does."""
        steps = checkpoint.children(job, pipeline)
        return perform_async(steps, self._take_async) if job.stage.is_async else perform(steps, self._take)

    def note(self, job: Job, text: str) -> None:
        """Does nothing: progress is for others, who don't see this transaction."""

    def take_written(self) -> list[Statement]:
        """Returns the statements that have kept a result since the last call: a rollback may have undone them."""
        written, self._written = self._written, []
        return written

    def _take(self, step: Statement | Call) -> Any:
        if isinstance(step, Call):
            return step.function()
        self._note(step)
        return self._rows(step)

    async def _take_async(self, step: Statement | Call) -> Any:
        if isinstance(step, Call):
            result = step.function()
            return await result if inspect.isawaitable(result) else result
        self._note(step)
        return await self._rows_async(step)

    def _note(self, step: Statement) -> None:
        if step[0] == checkpoint.SQL["checkpoint_write"] or step[0] in blobs.WRITES:
            self._written.append(step)


class _Settings:
    """What the session's settings were before, to be put back."""

    def __init__(self, rows: list[Any]) -> None:
        found = dict(rows)
        self.own = {name: value for name, value in found.items() if name in _OWN}
        self.engines = {name: found.get(name) or "" for name in _ENGINES}

    def put_back(self, *, own: bool = True) -> Statement:
        """Returns the statement that sets them for the rest of the transaction; without `own` only the schema's."""
        return _set({**self.engines, **(self.own if own else {})})


def _set(settings: dict[str, str]) -> Statement:
    names, values = text_array(settings), text_array(settings.values())
    return session.SQL["session_set"], {"names": names, "values": values, "local": True, "path": False}


_READ: Statement = session.SQL["session_read"], {"names": text_array([*_OWN, *_ENGINES])}
_READING = {"client_encoding": "UTF8", **session.READING}


def _is_restore(step: Statement) -> bool:
    """Returns whether a statement puts back what a session of the engine's own begins with: this one is not."""
    return step[0] == session.SQL["session_restore"]


class Inside:
    """Takes the steps of a drain on a sync connection."""

    def __init__(self, conn: psycopg.Connection[Any], given: Any) -> None:
        self._conn = conn
        self._django = given if isinstance(door(given), Django) else None
        self._blocks: list[psycopg.Transaction] = []
        self._loop: asyncio.Runner | None = None
        self.kept = Kept(self._rows, self._rows_in_loop)

    def run(self, sequence: Sequence) -> None:
        """Drains. Whatever happens, the transaction goes on, and the session is as it was."""
        self._settings = _Settings(self._rows(_READ))
        self._rows(_set(_READING))
        try:
            with lifespans_open(sequence, self._in_loop):
                perform(sequence.steps(), self._take)
        finally:
            while self._blocks:
                self._close(rollback=True)
            if self._conn.info.transaction_status == TransactionStatus.INTRANS:
                self._rows(sequence.leave())
                self._rows(self._settings.put_back())
            if self._loop is not None:
                self._loop.close()

    def _take(self, step: Step) -> Any:
        match step:
            case Guard():
                self._open()
            case Release():
                self._close(rollback=self._conn.info.transaction_status == TransactionStatus.INERROR)
                self._keep_again()
            case Undo():
                self._close(rollback=True)
            case PutBackSettings():
                self._rows(self._settings.put_back(own=False))
            case Rest(seconds):
                time.sleep(seconds)
            case Handle(run):
                return self._handle(run)
            case InTransaction():
                return self._in_transaction(step)
            case AfterCommit(what, _, _, hooks):
                call_after_commit_sync(hooks, what, log)
            case _:
                return self._rows(step)

    def _handle(self, run: Run[Any]) -> Outcome:
        stage = run._job.stage
        if not stage.is_async:
            return contextvars.copy_context().run(handle_sync, [run])[0]
        handling = partial(handled_within, run)
        if (
            self._django is not None
        ):  # so that the ORM, called from async code, works in this thread, on this connection
            async_to_sync: Any = importlib.import_module("asgiref.sync").async_to_sync
            outcome: Outcome = async_to_sync(handling)()
            return outcome
        return self._in_loop(handling())  # type: ignore[no-any-return]

    def _in_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        self._loop = self._loop or asyncio.Runner()
        return self._loop.run(work)

    def _in_transaction(self, step: InTransaction) -> Any:
        require_color(self._conn, step.what, is_async=step.is_async)
        depth = len(self._blocks)

        def take(inner: Any) -> Any:
            match inner:
                case Begin(first):
                    self._open()
                    return self._rows(first)
                case Call(function):
                    with plain(self._conn):
                        return function()
                case Commit(last):
                    for statement in last:
                        if not _is_restore(statement):
                            self._rows(statement)
                    self._close(rollback=False)
                    return None
                case _:
                    return self._rows(self._settings.put_back() if _is_restore(inner) else inner)

        try:
            return perform(step.steps(self._conn), take)
        finally:
            while len(self._blocks) > depth:
                self._close(rollback=True)
            self._keep_again()

    def _open(self) -> None:
        self._blocks.append(psycopg.Transaction(self._conn))
        self._blocks[-1].__enter__()

    def _close(self, *, rollback: bool) -> None:
        block = self._blocks.pop()
        block.force_rollback = rollback
        block.__exit__(None, None, None)
        if rollback and self._django is not None:
            self._django.needs_rollback = False  # what has failed was behind the savepoint

    def _keep_again(self) -> None:
        for statement in self.kept.take_written():
            self._rows(statement)

    def _rows(self, statement: Statement) -> list[Any]:
        with plain(self._conn):
            cursor = self._conn.execute(*statement)
            return cursor.fetchall() if cursor.description else []

    async def _rows_in_loop(self, statement: Statement) -> list[Any]:
        return self._rows(statement)


class InsideAsync:
    """Does what `Inside` does, on an async connection. Plain handlers run in threads."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self._conn = conn
        self._blocks: list[psycopg.AsyncTransaction] = []
        self._loop = asyncio.get_running_loop()
        self.kept = Kept(self._rows_in_thread, self._rows)

    async def run(self, sequence: Sequence) -> None:
        """Drains."""
        self._settings = _Settings(await self._rows(_READ))
        await self._rows(_set(_READING))
        try:
            await sequence.lifespans.open(Service("Drain"))
            try:
                await perform_async(sequence.steps(), self._take)
            finally:
                await sequence.lifespans.close(None, None, None)
        finally:
            while self._blocks:
                await self._close(rollback=True)
            if self._conn.info.transaction_status == TransactionStatus.INTRANS:
                await self._rows(sequence.leave())
                await self._rows(self._settings.put_back())

    async def _take(self, step: Step) -> Any:
        match step:
            case Guard():
                await self._open()
            case Release():
                await self._close(rollback=self._conn.info.transaction_status == TransactionStatus.INERROR)
                await self._keep_again()
            case Undo():
                await self._close(rollback=True)
            case PutBackSettings():
                await self._rows(self._settings.put_back(own=False))
            case Rest(seconds):
                await asyncio.sleep(seconds)
            case Handle(run):
                if run._job.stage.is_async:
                    return await asyncio.create_task(handled_within(run))
                return (await asyncio.to_thread(handle_sync, [run]))[0]
            case InTransaction():
                return await self._in_transaction(step)
            case AfterCommit(what, _, timeout, hooks):
                await call_after_commit(hooks, what, timeout, log)
            case _:
                return await self._rows(step)

    async def _in_transaction(self, step: InTransaction) -> Any:
        require_color(self._conn, step.what, is_async=step.is_async)
        depth = len(self._blocks)

        async def take(inner: Any) -> Any:
            match inner:
                case Begin(first):
                    await self._open()
                    return await self._rows(first)
                case Call(function):
                    with plain(self._conn):
                        return await within(step.timeout, function)
                case Commit(last):
                    for statement in last:
                        if not _is_restore(statement):
                            await self._rows(statement)
                    await self._close(rollback=False)
                    return None
                case _:
                    return await self._rows(self._settings.put_back() if _is_restore(inner) else inner)

        try:
            return await perform_async(step.steps(self._conn), take)
        finally:
            while len(self._blocks) > depth:
                await self._close(rollback=True)
            await self._keep_again()

    async def _open(self) -> None:
        self._blocks.append(psycopg.AsyncTransaction(self._conn))
        await self._blocks[-1].__aenter__()

    async def _close(self, *, rollback: bool) -> None:
        block = self._blocks.pop()
        block.force_rollback = rollback
        await block.__aexit__(None, None, None)

    async def _keep_again(self) -> None:
        for statement in self.kept.take_written():
            await self._rows(statement)

    async def _rows(self, statement: Statement) -> list[Any]:
        with plain(self._conn):
            cursor = await self._conn.execute(*statement)
            return await cursor.fetchall() if cursor.description else []

    def _rows_in_thread(self, statement: Statement) -> list[Any]:
        return asyncio.run_coroutine_threadsafe(self._rows(statement), self._loop).result()


@contextmanager
def lifespans_open(sequence: Sequence, in_loop: Callable[[Coroutine[Any, Any, Any]], Any]) -> Iterator[None]:
    """Has open what the pipelines' lifespans make."""
    if not any(pipeline.hooks.lifespan for pipeline in sequence.pipelines):
        yield
        return
    in_loop(sequence.lifespans.open(Service("Drain")))
    try:
        yield
    finally:
        in_loop(sequence.lifespans.close(None, None, None))


async def handled_within(run: Run[Any]) -> Outcome:
    """Calls an async handler; returns its outcome, which is a failure after its stage's timeout."""
    try:
        return (await within(run._job.stage.timeout, partial(handle_async, [run])))[0]  # type: ignore[no-any-return]
    except TimeoutError as error:
        return fail(run._job, error)


async def within(timeout: float, function: Callable[[], Awaitable[Any]]) -> Any:
    """Calls an async function. Raises TimeoutError after `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            return await function()
    except TimeoutError:
        raise TimeoutError(f"no outcome within its timeout of {timeout:g} s") from None
