"""The handoff: messages become workflows of a pipeline in another Postgres, each once, without a broker.

Ids and workflows are one transaction there. Whatever dies on either side, the relay hands the part on again, and the
inbox there knows what it had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import psycopg

from .. import documents, texts
from ..checks import check_name
from ..client.inbox import parse_id
from ..database import statements
from ..database.dsn import engine_conninfo
from ..database.link import first_line
from ..database.statements import array, text_array
from ..errors import InvalidInput, SettingsError
from .log import Outgoing
from .sharding import shard

SQL = statements.load("handoff")

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
_ANSWER = 30.0
# What Postgres says of a value, not of itself: bad data, a broken constraint, a limit, our own triggers.
_OF_THE_MESSAGE = {"22", "23", "54", "OB"}
_WHY = {
    "old": "it is older than what the inbox there remembers: nobody can say whether it was handed on before",
    "new": "its id is of the future: the clock of its writer, or of the database there, is wrong",
    "there": "its entity has a workflow there already, of another message",
}

Parked = dict[int, tuple[Outgoing, str]]


class Handoff:
    """Delivers messages to a pipeline in the database `dsn`: a workflow each, its payload being the metadata.

    `entity_id` is a template of {key}, {topic} and {message_id}; a message without a key has its id for it. Only
    messages whose topic fits one of `topics` (with * and ?) are handed on, and with `part` (2, 4) only those whose
    entity lives in database 2 of 4 (see outbox.shard). `strict`: messages of a key wait behind a parked one.
    """

    def __init__(
        self,
        dsn: str,
        pipeline: str,
        *,
        entity_id: str = "{key}",
        topics: Sequence[str] = (),
        part: tuple[int, int] | None = None,
        strict: bool = False,
        may_send: Callable[[], bool] = lambda: True,
        on_trouble: Callable[[str | None], None] = lambda trouble: None,
    ) -> None:
        try:
            entity_id.format(key="", topic="", message_id="")
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise SettingsError(
                f"the entity id {entity_id!r} is no template of {{key}}, {{topic}} and {{message_id}}: "
                f"{type(error).__name__}"
            ) from None
        self._dsn = engine_conninfo(dsn, "handoff")
        self._pipeline = check_name(pipeline, "pipeline")
        self._consumer = f"pipeline {pipeline}"
        self._entity_id, self._part, self._strict = entity_id, part, strict
        self._topics = tuple(topics)
        self._may_send, self._on_trouble = may_send, on_trouble
        self._conn: psycopg.AsyncConnection[Any] | None = None

    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: set[str]) -> Parked:
        """Hand messages on, in their order; return those that can't be, with the reason. Waits while it must."""
        parked: Parked = {}
        stopped = set(stopped_keys)
        left = [message for message in messages if self._is_meant(message)]
        size, wait = len(left), _FIRST_WAIT
        while left:
            batch = [message for message in left[:size] if not self._is_stopped(message, stopped)]
            try:
                refused = await asyncio.wait_for(self._hand_on(batch), _ANSWER)
            except (psycopg.Error, OSError) as error:
                if _of_a_message(error) and len(batch) > 1:
                    size = len(batch) // 2  # to find the one
                    continue
                if not _of_a_message(error):
                    size = max(1, size // 2) if isinstance(error, TimeoutError) else size
                    await self._pause(error, wait)
                    wait = min(_LONGEST_WAIT, wait * 2)
                    continue
                refused = {batch[0].id: first_line(error)}
            self._on_trouble(None)
            wait = _FIRST_WAIT
            for message in left[:size]:
                if message.id in refused:
                    parked[message.id] = message, texts.clean(refused[message.id])
                elif self._is_stopped(message, stopped):
                    parked[message.id] = message, f"behind an earlier parked message of its key {message.key!r}"
            if refused and self._strict:
                # Nothing of the batch was written: once more, without these and those behind them.
                stopped |= {message.key for message in batch if message.id in refused and message.key is not None}
                left = [message for message in left if message.id not in parked]
            else:
                left, size = left[size:], size * 2
        return parked

    async def close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()

    async def _hand_on(self, batch: Sequence[Outgoing]) -> dict[int, str]:
        """Write a batch in one transaction; return what was refused and why. Strict, with that nothing is written."""
        refused = {message.id: why for message in batch if (why := self._problem(message))}
        good = [message for message in batch if message.id not in refused]
        if not good or (refused and self._strict):
            return refused
        conn = await self._connection()
        while not self._may_send():
            await asyncio.sleep(0.1)
        async with conn.transaction() as transaction:
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

    async def _connection(self) -> psycopg.AsyncConnection[Any]:
        if self._conn is None or self._conn.closed:
            self._conn = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        return self._conn

    async def _pause(self, error: BaseException, seconds: float) -> None:
        said = "it does not answer" if isinstance(error, TimeoutError) else first_line(error)
        self._on_trouble(f"the database to hand on to: {said}")
        await self.close()
        await asyncio.sleep(seconds)

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
            texts.check_text(self._entity(message), "entity_id", documents.MAX_ENTITY_ID)
        except InvalidInput as error:
            return str(error)
        return None


class _NotThere(psycopg.OperationalError):
    """What has to be set up in the other database first."""


def _of_a_message(error: BaseException) -> bool:
    """Whether it is about what was written, not about the database that it was written to."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state is not None and state[:2] in _OF_THE_MESSAGE
