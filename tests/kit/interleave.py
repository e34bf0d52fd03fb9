"""Tries every interleaving of what two or three actors do, on real connections, like Postgres' isolation tester.

An actor is a function of a connection: it is the engine's own code, not a copy. Each statement that it sends, and each
end of a transaction, is a step, and it waits for its turn before each step. The search goes through all possible orders
of steps. A step that waits for a lock is parked while others go on, and ends when the lock is free. Whether it waits is
asked of Postgres (`pg_blocking_pids`), never guessed from time. Nothing here depends on the engine.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import psycopg
from psycopg import sql

REPLAY = "OUTBOX_SCHEDULE"
"""The environment variable that makes a test run one schedule again, as a failure's report says, and only that one."""

DEADLINE = 600.0
"""Seconds without progress after which the scheduler gives up: only against hanging."""
GLANCE = 0.0015
"""Seconds that a step may take before Postgres is asked whether it waits."""

# A statement that touches only the actor's own session is no step, because its order among others doesn't matter.
_OWN = re.compile(r"\s*(SET|RESET|FETCH|CLOSE|SELECT\s+set_config|SELECT\s+current_setting)\b", re.IGNORECASE)
_CLEANING = "outbox.session_clean"
"""Likewise, except in a pipeline, where it belongs to the step of the COMMIT that it is sent with."""


@dataclass(frozen=True)
class Actor:
    """`act(connection)`, sync or async. With `steps`, only statements that match it are steps.

    Time stands still: statements that set `lock_timeout` are left out, and a wait lasts as long as it takes. A `hasty`
    actor's waits do time out, and no other actor goes on in the meantime.
    """

    act: Callable[[Any], Any]
    steps: str | None = None
    hasty: bool = False


@dataclass(frozen=True)
class Scene:
    """Fresh rows, the actors, and a check of what each of them returned or raised.

    An actor's exception that is not one of `may_raise` fails the schedule. A deadlock is an outcome only if it is
    listed.
    """

    actors: Mapping[str, Actor | Callable[[Any], Any]]
    check: Callable[[dict[str, Any]], None]
    may_raise: tuple[type[Exception], ...] = ()


@dataclass(frozen=True)
class Played:
    """One interleaving: the actors in the order of their steps, who had to wait, and the outcome of each."""

    schedule: str
    waited: frozenset[str]
    outcomes: dict[str, Any]


Explore = Callable[[Callable[[], Scene]], list[Played]]


class ScheduleFailed(AssertionError):
    """An interleaving has failed its check. The message has the line that repeats it."""


class _Abandoned(BaseException):
    """Ends an actor whose interleaving is given up."""


class Scheduler:
    """Runs interleavings on connections of one database's actors, which it keeps from one interleaving to the next."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._open: dict[tuple[str, bool], Any] = {}
        self._closing = ExitStack()
        self._closing.enter_context(_cursors_wait_for_their_turn())
        self._asking = self._closing.enter_context(psycopg.connect(dsn, autocommit=True))

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *error: object) -> None:
        for conn in self._open.values():
            if isinstance(conn, psycopg.AsyncConnection):
                asyncio.run(conn.close())
            else:
                conn.close()
        self._closing.close()

    def explore(self, make: Callable[[], Scene]) -> list[Played]:
        """Runs and returns every interleaving, each on its own scene. Raises ScheduleFailed at the first bad one."""
        if given := os.environ.get(REPLAY):
            return [self._run(make(), given.split())[0]]
        all_played: list[Played] = []
        schedule: list[str] = []
        while True:
            played, turns = self._run(make(), schedule)
            all_played.append(played)
            # Goes back to the last turn at which another actor could have gone, and on from there.
            while turns and turns[-1].last:
                turns.pop()
            if not turns:
                return all_played
            schedule = [*(turn.taken for turn in turns[:-1]), turns[-1].following]

    def _run(self, scene: Scene, schedule: Sequence[str]) -> tuple[Played, list[_Turn]]:
        changed = threading.Condition()
        players = {}
        for name, actor in scene.actors.items():
            actor = actor if isinstance(actor, Actor) else Actor(actor)
            players[name] = _Player(name, actor, self._connection(name, actor), changed)
        turns: list[_Turn] = []
        waited: set[str] = set()
        outcomes: dict[str, Any] = {}
        try:
            for player in players.values():
                player.start()
            parked = self._settle(changed, players)
            while ready := [player.name for player in players.values() if player.state == "ready"]:
                wanted = schedule[len(turns)] if len(turns) < len(schedule) else ready[0]
                assert wanted in ready, f"{wanted} can't go on in this schedule, only {' or '.join(ready)}"
                turns.append(_Turn(wanted, ready))
                players[wanted].go()
                parked = self._settle(changed, players, parked)
                waited |= parked
            outcomes = {player.name: player.outcome for player in players.values()}
            for outcome in outcomes.values():
                if isinstance(outcome, BaseException) and not isinstance(outcome, scene.may_raise):
                    raise outcome
            scene.check(outcomes)
        except Exception as error:
            line = " ".join(turn.taken for turn in turns)
            test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]
            raise ScheduleFailed(
                f"{type(error).__name__}: {error}\n{outcomes}\n{REPLAY}='{line}' .venv/bin/pytest '{test}'"
            ) from error
        finally:
            for player in players.values():
                player.end()
        return Played(" ".join(turn.taken for turn in turns), frozenset(waited), outcomes), turns

    def _settle(
        self, changed: threading.Condition, players: Mapping[str, _Player], parked: frozenset[str] = frozenset()
    ) -> frozenset[str]:
        """Returns the actors that wait for one at rest, as soon as all others are at rest or have ended.

        Actors that wait in a circle are not at rest: Postgres ends one of them.
        """
        deadline = time.monotonic() + DEADLINE
        while True:
            with changed:
                changed.wait_for(
                    lambda parked=parked: (
                        not any(p.state == "under way" and p.name not in parked for p in players.values())
                    ),
                    GLANCE,
                )
                moving = {p.pid: p for p in players.values() if p.state == "under way"}
            if not moving:
                return frozenset()
            rows = self._asking.execute(
                "SELECT pid, pg_blocking_pids(pid) FROM unnest(%s::integer[]) AS pid", [list(moving)]
            ).fetchall()
            # An actor that was at rest before the query still is, because only the next turn changes that.
            holding = {p.pid for p in players.values()} - moving.keys()
            waiting: set[int] = set()
            while found := {pid for pid, blockers in rows if pid not in waiting and holding & {*blockers}}:
                waiting |= found
                holding |= found
            if waiting == moving.keys() and not any(player.actor.hasty for player in moving.values()):
                return frozenset(player.name for player in moving.values())
            parked = frozenset(moving[pid].name for pid in waiting if not moving[pid].actor.hasty)
            assert time.monotonic() < deadline, f"stuck: {[player.name for player in moving.values()]}, {rows}"

    def _connection(self, name: str, actor: Actor) -> Any:
        key = name, inspect.iscoroutinefunction(actor.act)
        if key not in self._open:
            connect = asyncio.run(_Async.connect(self._dsn, autocommit=True)) if key[1] else None
            self._open[key] = connect or _Sync.connect(self._dsn, autocommit=True)
        return self._open[key]


@dataclass(frozen=True)
class _Turn:
    """The actor that took a turn, and those that could have."""

    taken: str
    of: list[str]

    @property
    def last(self) -> bool:
        return self.taken == self.of[-1]

    @property
    def following(self) -> str:
        return self.of[self.of.index(self.taken) + 1]


@dataclass
class _Player:
    """An actor in a thread of its own: ready for its next step, executing it, or ended."""

    name: str
    actor: Actor
    conn: Any
    changed: threading.Condition
    state: str = "under way"
    outcome: Any = None
    abandoned: bool = False
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.pid: int = self.conn.info.backend_pid
        self.conn.player = self
        self.thread = threading.Thread(target=self._play, name=self.name, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def go(self) -> None:
        """Lets it take its next step."""
        self._is("under way")

    def step(self, text: str) -> bool:
        """Waits for the turn of a step; returns False if the statement is to be left out."""
        if re.match(r"\s*(SET|SELECT set_config)\b.*lock_timeout", text) and not self.actor.hasty:
            return False
        own = _OWN.match(text) or (_CLEANING in text and not self.conn._pipeline)
        if not own and (self.actor.steps is None or re.search(self.actor.steps, text)):
            with self.changed:
                self._is("ready")
                self.changed.wait_for(lambda: self.state != "ready" or self.abandoned)
                if self.abandoned:
                    raise _Abandoned
        return True

    def end(self) -> None:
        """Ends it, wherever it is."""
        with self.changed:
            self.abandoned = True
            self.changed.notify_all()
        while self.thread.is_alive():
            self.thread.join(0.2)
            if self.thread.is_alive():
                self.conn.pgconn.get_cancel().cancel()

    def _play(self) -> None:
        try:
            try:
                if isinstance(self.conn, psycopg.AsyncConnection):
                    self.outcome = asyncio.run(self._play_async())
                else:
                    self.outcome = self.actor.act(self.conn)
            finally:
                if not isinstance(self.conn, psycopg.AsyncConnection):
                    self.conn.rollback()
        except BaseException as error:
            self.outcome = error
        self._is("ended")

    async def _play_async(self) -> Any:
        try:
            return await self.actor.act(self.conn)
        finally:
            await self.conn.rollback()

    def _is(self, state: str) -> None:
        with self.changed:
            self.state = state
            self.changed.notify_all()


def _text(query: Any) -> str:
    if isinstance(query, sql.Composable):
        return query.as_string(None)
    return query.decode() if isinstance(query, bytes) else str(query)


def _patient(query: Any) -> Any:
    """Returns a statement without its lock timeout, because an actor waits until it is its turn."""
    if not isinstance(query, bytes):
        return query
    return query.replace(b"set_config('lock_timeout', %(lock_ms)s::integer::text, true)", b"%(lock_ms)s::integer")


@contextmanager
def _cursors_wait_for_their_turn() -> Iterator[None]:
    """Makes the statements of actors steps, whichever cursors they use: client/ makes its own."""
    execute, execute_async = psycopg.Cursor.execute, psycopg.AsyncCursor.execute

    def step(self: psycopg.Cursor[Any], query: Any, *args: Any, **options: Any) -> psycopg.Cursor[Any]:
        if not isinstance(self.connection, _Sync):
            return execute(self, query, *args, **options)
        return execute(self, _patient(query), *args, **options) if self.connection.player.step(_text(query)) else self

    async def step_async(
        self: psycopg.AsyncCursor[Any], query: Any, *args: Any, **options: Any
    ) -> psycopg.AsyncCursor[Any]:
        if not isinstance(self.connection, _Async):
            return await execute_async(self, query, *args, **options)
        taken = self.connection.player.step(_text(query))
        return await execute_async(self, _patient(query), *args, **options) if taken else self

    with patch.object(psycopg.Cursor, "execute", step), patch.object(psycopg.AsyncCursor, "execute", step_async):
        yield


class _Sync(psycopg.Connection[Any]):
    """A connection whose statements wait for their turn. BEGIN doesn't, because it locks and sees nothing yet."""

    player: _Player

    def _exec_command(self, command: Any, *args: Any) -> Any:
        _step_of_an_end(self, command)
        return (yield from super()._exec_command(command, *args))


class _Async(psycopg.AsyncConnection[Any]):
    player: _Player

    def _exec_command(self, command: Any, *args: Any) -> Any:
        _step_of_an_end(self, command)
        return (yield from super()._exec_command(command, *args))


def _step_of_an_end(conn: Any, command: Any) -> None:
    """Makes the end of a transaction wait for its turn. In a pipeline it belongs to the statements before it."""
    if command in (b"COMMIT", b"ROLLBACK") and not conn._pipeline and not conn.player.abandoned:
        conn.player.step("COMMIT")  # or the rollback
