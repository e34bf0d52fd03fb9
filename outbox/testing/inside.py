"""Drains in the caller's own transaction: each step is a savepoint, and nothing is committed."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import logging
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from ..database.drivers.of_django import Django
from ..database.drivers.recognise import door
from ..database.steps import Call, Statement, perform, perform_async
from ..database.user_transaction import Begin, Commit
from ..definition.run import Run
from ..definition.step_transaction import call_after_commit, call_after_commit_sync
from ..engine.handle import handle_sync
from ..engine.job import Outcome
from ..process.service import Service
from .connections import plain, require_color
from .handling import handled_within, lifespans_open, within
from .kept import Kept
from .sequence import Sequence
from .session_settings import READ, READING, SessionSettings, is_restore, set_local
from .steps import AfterCommit, Guard, Handle, InTransaction, PutBackSettings, Release, Rest, Step, Undo

log = logging.getLogger("outbox.worker")


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
        self._settings = SessionSettings(self._rows(READ))
        self._rows(set_local(READING))
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
        if self._django is not None:
            # So that the ORM, called from async code, works in this thread, on this connection.
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
                        if not is_restore(statement):
                            self._rows(statement)
                    self._close(rollback=False)
                    return None
                case _:
                    return self._rows(self._settings.put_back() if is_restore(inner) else inner)

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
        self._settings = SessionSettings(await self._rows(READ))
        await self._rows(set_local(READING))
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
                        if not is_restore(statement):
                            await self._rows(statement)
                    await self._close(rollback=False)
                    return None
                case _:
                    return await self._rows(self._settings.put_back() if is_restore(inner) else inner)

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
