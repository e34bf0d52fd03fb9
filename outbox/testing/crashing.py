"""Runs a test's scenario again and again, each time with a crash at another step."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg

from ..database import statements, user_transaction
from ..database.session import READING, connect, connect_async, tuples
from ..database.statements import array
from ..database.steps import Call, Statement, perform
from ..database.user_transaction import Begin, Commit
from ..database.user_transaction import Steps as TransactionSteps
from ..definition.pipeline import Pipeline
from ..definition.step_transaction import call_after_commit, call_after_commit_sync
from ..engine import blobs, checkpoint, claim, commit, effects, lease, maintenance, scheduler
from ..engine.apart import ALL
from ..engine.handle import handle_sync
from ..errors import InvalidInput
from ..texts import shown
from . import sequence
from .cleaning import clean
from .draining import Pipelines, checked
from .handling import handled_within, lifespans_open, within
from .kept import Kept
from .running import no_loop
from .sequence import Sequence
from .steps import AfterCommit, Guard, Handle, InTransaction, PutBackSettings, Release, Rest, Step, Undo
from .working import Drained

log = logging.getLogger("outbox.worker")

SQL = statements.load("crashing")

_LOOKS = {
    "clock",
    "maintenance_look",
    "schedules_look",
    "checkpoint_read",
    "workflow_unchanged",
    "schedule_take",
    "worker_register",
}
"""Statements after which a crash is the same as before them: they change nothing that counts."""

_NAMES = {
    statement: name
    for module in (checkpoint, claim, commit, effects, lease, maintenance, scheduler, sequence)
    for name, statement in module.SQL.items()
    if name not in _LOOKS
}

GONE_WITHIN = 30.0
"""Seconds in which Postgres notices that a session was cut: it only keeps a test from hanging."""


class Crash(BaseException):
    """Ends a drain as a crash of its process does."""


class Crashes:
    """Runs a scenario. `place` is the number of the step after which it crashes; None: it doesn't."""

    def __init__(self, pipelines: list[Pipeline[Any]], dsn: str, options: dict[str, Any]) -> None:
        self._pipelines, self._dsn, self._options = pipelines, dsn, options
        self._conn = connect(dsn, "clean")
        self._draining: psycopg.Connection[Any] | None = None  # that of one drain after the other, until a crash
        self._place: int | None = None
        self._places: list[str] = []

    def run(self, scenario: Callable[[Callable[[], Drained]], Any], place: int | None) -> list[str]:
        """Runs the scenario in an empty database. Returns the names of its steps."""
        self._place, self._places = place, []
        clean(self._conn)
        scenario(self._drain)
        return self._places

    def close(self) -> None:
        self._conn.close()
        if self._draining is not None:
            self._draining.close()

    def _drain(self) -> Drained:
        """Drains. If a crash ends it, frees the jobs of the worker that was lost, and drains once more."""
        first = self._next(self._at)
        try:
            return first.drain()
        except Crash:
            pass
        self._recover(first)
        return self._next(lambda place: None).drain()

    def _next(self, at: Callable[[str], None]) -> _Run:
        if self._draining is None or self._draining.closed:
            self._draining = connect(self._dsn, "drain")
        return _Run(self._draining, self._dsn, self._pipelines, self._options, at)

    def _at(self, place: str) -> None:
        self._places.append(place)
        if self._place == len(self._places):
            raise Crash

    def _recover(self, run: _Run) -> None:
        """Does what the other workers do about a worker that has died."""
        until = time.monotonic() + GONE_WITHIN
        while tuples(self._conn, SQL["sessions_left"], pids=array(run.pids))[0][0] and time.monotonic() < until:
            time.sleep(0.002)
        tuples(self._conn, maintenance.SQL["workers_bury"], dead=[run.worker], leases=False, now=None)
        tuples(self._conn, maintenance.SQL["jobs_sweep"], **ALL, limit=maintenance.BATCH)


def crash_everywhere(
    scenario: Callable[[Callable[[], Drained]], Any], pipelines: Pipelines, dsn: str, *, retries: bool = False,
    raise_errors: bool = True,
) -> list[str]:  # fmt: skip
    """Runs a scenario once to its end, and then once for each of its steps, with a crash after that step.

    `scenario` is given a function that drains, in place of `drain`; it makes its workflows, drains, and asserts what
    must be so whether there was a crash or not. Before each run the database is emptied by `clean`; what else the
    scenario writes it puts back itself. Steps are the statements of a worker that write, calls of handlers, what
    `run.once` and `run.effect` have called for or kept, and COMMITs. After a crash, whatever was not committed is gone,
    the job is freed, as other workers do, and the drain goes on. A crash costs an attempt.

    Returns the names of the steps. An assertion that fails has a note of where the crash was.
    """
    if not isinstance(dsn, str):
        raise InvalidInput("dsn", f"must be a DSN, not {shown(dsn)}: a crash ends connections")
    no_loop("crash_everywhere")
    several, options = checked(pipelines), {"retries": retries, "raise_errors": raise_errors}
    crashes = Crashes(several, dsn, options)
    try:
        places = crashes.run(scenario, None)
        for number, place in enumerate(places, 1):
            try:
                crashes.run(scenario, number)
            except BaseException as error:
                error.add_note(f"with a crash at step {number} of {len(places)}: after {place}")
                raise
    finally:
        crashes.close()
    return places


class _Run:
    """One drain. `at` is called after each step, and may raise Crash. The connections of handlers are its own."""

    def __init__(
        self, conn: psycopg.Connection[Any], dsn: str, pipelines: list[Pipeline[Any]], options: dict[str, Any],
        at: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._conn, self._dsn = conn, dsn
        self._at_step = at
        self._crashed = False
        self._loop: asyncio.Runner | None = None
        self._others: dict[bool, Any] = {}  # connections of handlers, by whether they are async
        self._sequence = Sequence(pipelines, _KeptOnly(self._rows, self._at), **options)
        self.pids = [conn.info.backend_pid]

    @property
    def worker(self) -> int:
        return self._sequence.worker

    def drain(self) -> Drained:
        """Drains until the end, or a crash. After a crash or an error, the connection is closed."""
        try:
            try:
                with lifespans_open(self._sequence, self._in_loop):
                    perform(self._sequence.steps(), self._take)
            finally:
                if not self._crashed:
                    self._rows(self._sequence.leave())
        except BaseException:
            self._cut(self._conn)
            raise
        finally:
            self._cut(*self._others.values())
            if self._loop is not None:
                self._loop.close()
        return Drained(self._sequence.counts)

    def _take(self, step: Step) -> Any:
        match step:
            case Guard() | Release() | Undo() | PutBackSettings():
                return None
            case Rest(seconds):
                return time.sleep(seconds)
            case Handle(run):
                if run._job.stage.is_async:
                    outcome: Any = self._in_loop(handled_within(run))
                else:
                    outcome = contextvars.copy_context().run(handle_sync, [run])[0]
                self._at(f"the handler of {run._job.stage.queue}")
                return outcome
            case InTransaction():
                return self._in_transaction(step)
            case AfterCommit(what, is_async, timeout, hooks):
                if is_async:
                    return self._in_loop(call_after_commit(hooks, what, timeout, log))
                return call_after_commit_sync(hooks, what, log)
            case _:
                rows = self._rows(step)
                name = _NAMES.get(step[0])
                if name is not None and (rows or not name.startswith("jobs_claim")):
                    self._at(name)
                return rows

    def _in_transaction(self, step: InTransaction) -> Any:
        if step.is_async:
            return self._in_loop(self._in_transaction_async(step))
        if False not in self._others:
            self._others[False] = connect(self._dsn, "handler", settings=READING)
            self.pids.append(self._others[False].info.backend_pid)
        conn = self._others[False]
        return user_transaction.run(conn, self._watched(step, step.steps(conn)))

    async def _in_transaction_async(self, step: InTransaction) -> Any:
        if True not in self._others:
            self._others[True] = await connect_async(self._dsn, "handler", settings=READING)
            self.pids.append(self._others[True].info.backend_pid)
        conn = self._others[True]
        return await user_transaction.run_async(conn, self._watched(step, step.steps(conn)))

    def _watched(self, of: InTransaction, steps: TransactionSteps[Any]) -> TransactionSteps[Any]:
        """Takes the steps of a transaction, and tells of those that others could see the end of."""
        answer: Any = None
        error: BaseException | None = None
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            answer = error = None
            if isinstance(step, Call) and of.is_async:
                step = Call(partial(within, of.timeout, step.function), step.timeout)
            try:
                answer = yield step
            except BaseException as raised:
                error = raised
            match step:
                case Call():
                    self._at(f"the function of {of.what}")
                case Commit() if error is None:
                    self._at(f"the COMMIT of {of.what}")
                case Begin():
                    self._at(f"the BEGIN of {of.what}")

    def _at(self, place: str) -> None:
        """Crashes here, or after a handler in which there was a crash."""
        if self._crashed:
            raise Crash
        try:
            self._at_step(place)
        except Crash:
            self._crashed = True
            self._cut(self._conn, *self._others.values())
            raise

    @staticmethod
    def _cut(*conns: Any) -> None:
        """Cuts connections, as the end of a process does: what was not committed is rolled back."""
        for conn in conns:
            with suppress(psycopg.Error, OSError):
                conn.pgconn.finish()

    def _in_loop(self, work: Any) -> Any:
        self._loop = self._loop or asyncio.Runner()
        return self._loop.run(work)

    def _rows(self, statement: Statement) -> list[Any]:
        cursor = self._conn.execute(*statement)
        return cursor.fetchall() if cursor.description else []


_WRITTEN = {
    checkpoint.SQL["checkpoint_write"]: "a result of run.once was kept",
    effects.SQL["effect_intend"]: "an effect was intended",
    effects.SQL["effect_note"]: "what has become of an effect was kept",
}


class _KeptOnly(Kept):
    """Keeps results of `run.once` and effects, and tells of each that was called for, and of each that was kept."""

    def __init__(self, rows: Callable[[Statement], list[Any]], at: Callable[[str], None]) -> None:
        async def rows_async(statement: Statement) -> list[Any]:
            return rows(statement)

        super().__init__(rows, rows_async)
        self._at = at

    def _take(self, step: Statement | Call) -> Any:
        result = super()._take(step)
        self._tell(step)
        return result

    async def _take_async(self, step: Statement | Call) -> Any:
        if isinstance(step, Call):
            result = step.function()
            result = await result if inspect.isawaitable(result) else result
            self._tell(step)
            return result
        return self._take(step)

    def _tell(self, step: Statement | Call) -> None:
        if isinstance(step, Call):
            self._at("a call of run.once or run.effect")
        elif (place := _WRITTEN.get(step[0])) is not None:
            self._at(place)
        elif step[0] in blobs.WRITES:
            self._at("a part of a blob was written" if "contents" in step[1] else "a blob was written")
