"""Turns messages into workflows of a pipeline in another Postgres, each message once, without a broker.

A message's id and its workflow are written there in one transaction. If either side dies, the relay sends the part
again, and the inbox there knows which messages it already has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any

import psycopg

from .. import documents, texts
from ..checks import check_name
from ..client.inbox import parse_id
from ..database import primary, statements
from ..database.connection_group import ConnectionGroup
from ..database.dsn import address, place
from ..database.given import AnyDsn, current, given, require_readable
from ..database.link import first_line
from ..database.probe import Probe
from ..database.session import WORKING, connect_async
from ..database.statements import array, text_array
from ..errors import InvalidInput, SettingsError
from ..process.service import Delays, cancel, side_by_side
from .sharding import shard
from .target import Outgoing, Parked, Target, Unsent

SQL = statements.load("handoff")

FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds before an unreachable database is tried again, doubled each time: soon after a restart, then less often."""

ANSWER_WITHIN = 30.0
"""Seconds in which a batch must be written there. A batch that takes longer is halved: the database may be slow."""

_LOCKS_WITHIN = ANSWER_WITHIN * 2 / 3
"""Seconds for which a statement there waits for a lock. The COMMIT of an attempt that was given up may still have its
locks: each further attempt ends by itself, and leaves no session behind that waits."""

LEASE_CHECK_EVERY = 0.1
"""Seconds between two checks whether the relay holds its name again."""

_OF_THE_MESSAGE = {"22", "23", "54", "OB"}
"""Classes of SQLSTATE that concern a value, not the database: bad data, constraints, limits, our own triggers."""

_WHY = {
    "old": "it is older than what the inbox there remembers, which can't tell whether it was delivered before",
    "new": "its id is in the future: the clock of its writer, or of the database there, is wrong",
    "there": "its entity already has a workflow there, of another message",
}
"""The reasons for parking messages, by the answer of `handoff` in handoff.sql."""


class Handoff(Target):
    """Delivers messages to a pipeline in the database `dsn`: each becomes a workflow with its payload as metadata.

    `entity_id` is a template of {key}, {topic} and {message_id}. If it has {key}, a message without a key gets its
    message id. Only messages whose topic matches one of `topics` (with * and ?) are delivered, and with `part` (2, 4)
    only those whose entity lives in database 2 of 4 (see outbox.shard). With `strict`, later messages of a key are
    parked behind a parked one.
    """

    def __init__(
        self,
        dsn: AnyDsn,
        pipeline: str,
        *,
        entity_id: str = "{key}",
        topics: Sequence[str] = (),
        part: tuple[int, int] | None = None,
        strict: bool = False,
    ) -> None:
        shown = f", shard {part[0]}/{part[1]}" if part else ""
        self._dsn = given(dsn)
        require_readable(self._dsn, "handoff")
        there = current(self._dsn)  # the relay's settings name the database
        self._address = address(there)
        super().__init__(f"pipeline {pipeline} in {place(there)}{shown}")
        try:
            entity_id.format(key="", topic="", message_id="")
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise SettingsError(
                f"the entity id {entity_id!r} is not a template of {{key}}, {{topic}} and {{message_id}}: "
                f"{type(error).__name__}"
            ) from None
        self._pipeline = check_name(pipeline, "pipeline")
        self._consumer = f"pipeline {pipeline}"
        self._entity_id, self._part, self._strict = entity_id, part, strict
        self._topics = tuple(topics)
        self._delays = Delays(FIRST_WAIT, LONGEST_WAIT)
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._group = ConnectionGroup()
        self._probe = Probe(self._dsn, self._group)
        self._probing: asyncio.Task[None] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        shard = {"shard": f"{self._part[0]}/{self._part[1]}"} if self._part else {}
        return {
            "target": self._address,
            "pipeline": self._pipeline,
            "topics": sorted(set(self._topics)),
            "entity_id": self._entity_id,
            **shard,
        }

    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: Mapping[str, bool]) -> Parked:
        """Writes messages there in their order; returns those that were refused, with the reason."""
        if self._probing is None:
            await primary.look(self._dsn)
            self._probing = asyncio.create_task(side_by_side(self._probe.run(), self._group.watch()))
        parked: Parked = {}
        stopped = set(stopped_keys)
        left = [message for message in messages if self._is_meant(message)]
        size = len(left)
        while left:
            batch = [message for message in left[:size] if not self._is_stopped(message, stopped)]
            try:
                refused = await self._write(batch)
            except (psycopg.Error, OSError) as error:
                if not _is_of_a_message(error):
                    size = max(1, size // 2) if isinstance(error, TimeoutError) else size
                    await self._pause(error)
                    continue
                if len(batch) > 1:
                    size = len(batch) // 2  # to find the bad message
                    continue
                refused = {batch[0].id: first_line(error)}
            self.trouble.set(None)
            self._delays.reset()
            for message in left[:size]:
                if message.id in refused:
                    parked[message.id] = Unsent(message, texts.clean(refused[message.id]))
                elif self._is_stopped(message, stopped):
                    why = f"behind an earlier parked message of its key {message.key!r}"
                    parked[message.id] = Unsent(message, why)
            if refused and self._strict:
                # Nothing of the batch was written. Try again without the refused messages and those behind them.
                stopped |= {message.key for message in batch if message.id in refused and message.key is not None}
                left = [message for message in left if message.id not in parked]
            else:
                left, size = left[size:], size * 2
        return parked

    async def close(self) -> None:
        probing, self._probing = self._probing, None
        if probing is not None:
            await cancel(probing)
        await self._probe.close()
        await self._disconnect()

    async def _disconnect(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()

    async def _write(self, batch: Sequence[Outgoing]) -> dict[int, str]:
        """Writes a batch in one transaction; returns what was refused and why. If `strict`, all of it or nothing."""
        refused = {message.id: why for message in batch if (why := self._problem(message))}
        good = [message for message in batch if message.id not in refused]
        if not good or (refused and self._strict):
            return refused
        conn = await asyncio.wait_for(self._connection(), ANSWER_WITHIN)
        while not self.lease.is_held():
            await asyncio.sleep(LEASE_CHECK_EVERY)
        async with self._in_time(conn), conn.transaction() as transaction:
            ids = [message.message_id for message in good]
            known = {"consumer": self._consumer, "pipeline": self._pipeline}
            deployed = await (await conn.execute(SQL["handoff_pipeline"], known)).fetchone()
            if not (deployed and deployed[0]):
                raise _NotThere(f"pipeline {self._pipeline!r} is not deployed there: run outbox deploy")
            cursor = await conn.execute(
                SQL["handoff"],
                {
                    **known,
                    "message_ids": array(ids),
                    "entities": text_array(map(self._entity, good)),
                    "metadata": text_array(message.payload for message in good),
                },
            )
            rows = await cursor.fetchall()
            refused |= {good[n - 1].id: _WHY[why] for n, why in rows}
            if rows and self._strict:
                raise psycopg.Rollback(transaction)
            if rows:
                there = array(ids[n - 1] for n, why in rows if why == "there")
                await conn.execute(SQL["handoff_unrecord"], {**known, "message_ids": there})
        return refused

    @asynccontextmanager
    async def _in_time(self, conn: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
        """Cuts the session, and raises TimeoutError, if what the block asks is not answered in time.

        What the database does then is unknown: it may still commit. No cancel is sent, as psycopg does when a task is
        cancelled: it would wait for the same server, and a COMMIT that waits for its standby would end as if it had it.
        """
        began = time.monotonic()
        try:
            with self._group.within(ANSWER_WITHIN, only=conn):
                yield
        except psycopg.OperationalError as error:
            if time.monotonic() - began < ANSWER_WITHIN:
                raise
            raise TimeoutError(f"no answer within {ANSWER_WITHIN:g} s") from error

    async def _connection(self) -> psycopg.AsyncConnection[Any]:
        if self._conn is None or self._conn.closed:
            settings = {**WORKING, "lock_timeout": f"{_LOCKS_WITHIN * 1000:.0f}ms"}
            self._conn = await connect_async(self._dsn, "handoff", settings=settings, group=self._group)
        return self._conn

    async def _pause(self, error: BaseException) -> None:
        why = "it does not answer" if isinstance(error, TimeoutError) else first_line(error)
        self.trouble.set(f"the database to hand on to: {why}")
        await self._disconnect()
        await asyncio.sleep(self._delays.next())

    def _is_meant(self, message: Outgoing) -> bool:
        if self._topics and not any(fnmatchcase(message.topic, pattern) for pattern in self._topics):
            return False
        return self._part is None or shard(self._entity(message), self._part[1]) == self._part[0]

    def _is_stopped(self, message: Outgoing, stopped: set[str]) -> bool:
        return self._strict and message.key in stopped

    def _entity(self, message: Outgoing) -> str:
        made = self._entity_id.format(key=message.key or "", topic=message.topic, message_id=message.message_id)
        return made if message.key is not None or "{key}" not in self._entity_id else message.message_id

    def _problem(self, message: Outgoing) -> str | None:
        try:
            parse_id(message.message_id)
            documents.entity(self._entity(message))
        except InvalidInput as error:
            return str(error)
        return None


class _NotThere(psycopg.OperationalError):
    """The other database lacks something that a person must set up first."""


def _is_of_a_message(error: BaseException) -> bool:
    """Returns whether an error concerns what was written, not the database."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state is not None and state[:2] in _OF_THE_MESSAGE
