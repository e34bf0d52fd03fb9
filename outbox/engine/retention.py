"""Sets how long finished data is kept, and deletes what is older."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from ..client import inbox
from ..database import statements
from ..database.link import Link
from ..errors import DefinitionError, OutboxError
from ..messages import ring
from ..texts import shown
from .apart import Apart

SQL = statements.load("retention")
log = logging.getLogger("outbox.maintenance")

BATCH = 1_000
"""Most rows that one transaction deletes."""

EACH = {
    "retention_workflows": ("workflows_to_delete", "old workflow"),
    "retention_history": ("history_to_delete", "old state change"),
    "retention_dead_jobs": ("dead_jobs_to_drop", "old dead job of workflow"),
    "retention_checkpoints": ("checkpoints_to_delete", "old checkpoint"),
    "retention_effects": ("effects_to_delete", "old effect"),
    "retention_rates": ("rates_to_delete", "old start time"),
    "retention_reactions": ("reactions_to_delete", "old reaction"),
}
"""What names the rows that each statement takes, and what they are in the log: triggers of others may refuse some."""

KEEP_BLOB_USES, KEEP_PARTS = 1.0, 24.0
"""Hours before it is looked whether a blob is still used, and for which parts without a blob stay.

A blob that is stored slowly, from a download, finds the parts that it has written or found at first.
"""

MOST_LOOKS = 10
"""Most batches of blobs that one run looks at: dead workers are looked for in the same tick."""

KEEP_REACTIONS = 7.0
"""Days for which a finished reaction can still be looked at. The function refuses fewer."""

LEAST_INBOX = 7
"""Least days that the inbox remembers ids unless the owner sets fewer, because it forgets them for every consumer."""


MAX_DAYS = 100_000
"""Most days that can be set: subtracting more from now would leave Postgres' calendar."""


@dataclass(frozen=True, slots=True)
class Retention:
    """The days for which a worker keeps finished workflows, history, errors of dead jobs, messages and the inbox.

    None keeps them without limit. A dead job itself is kept until its workflow moves on, or it is retried or deleted.
    `messages` is for databases without a relay. With a relay, messages are deleted once all relays have passed them,
    and never before. The inbox refuses messages older than its memory (TooOld), so that no duplicate passes as new.
    """

    workflows: float | None = None
    history: float | None = None
    dead_jobs: float | None = 90.0
    messages: float | None = None
    inbox: float | None = 90.0

    def __post_init__(self) -> None:
        for name, days in asdict(self).items():
            # A negative age would delete new rows, and an infinite one would fail each time.
            if days is not None and not (isinstance(days, int | float) and 0 <= days <= MAX_DAYS):
                raise DefinitionError(f"Retention {name}: {shown(days)} is not a number of days from 0 to {MAX_DAYS:,}")
        least, most = inbox.MEMORY_DAYS
        if self.inbox is not None and not least <= self.inbox <= most:
            raise DefinitionError(
                f"Retention inbox: {shown(self.inbox)} is not a number of days from {least} to {most}"
            )

    def require(self, conn: psycopg.Connection[Any]) -> None:
        """Raises OutboxError if this role may not delete what this retention requires."""
        with conn.cursor(row_factory=tuple_row) as cursor:
            (may,) = cursor.execute(SQL["retention_rights"]).fetchall()
        wanted = {"workflows": self.workflows, "history": self.history, "messages": self.messages, "inbox": None}
        if self.inbox is not None and self.inbox < LEAST_INBOX:
            wanted["inbox"] = self.inbox
        for (name, days), allowed in zip(wanted.items(), may, strict=True):
            if days is not None and not allowed:
                raise OutboxError(
                    f"--keep-{name} {days:g} (Retention {name}) is for the owner of the schema outbox: "
                    "this role may not delete them. See docs/roles.md"
                )


def steps(link: Link, apart: Apart, kept: Retention) -> Iterator[tuple[str, Awaitable[None]]]:
    """Yields, for each kind of data, a name and the step that deletes what is older than `kept` allows."""
    for name, days in (
        ("retention_workflows", kept.workflows),
        ("retention_history", kept.history),
        ("retention_dead_jobs", kept.dead_jobs),
        ("retention_checkpoints", 0.0),
        ("retention_effects", kept.history),
        ("retention_rates", 0.0),
        ("retention_reactions", KEEP_REACTIONS),
    ):
        if days is not None:
            yield name.replace("_", " "), _delete(apart, name, days)
    yield "retention blob uses", _look(link, "retention_blob_uses", KEEP_BLOB_USES)
    yield "retention blobs", _look(link, "retention_blobs", KEEP_PARTS)
    if kept.inbox is not None:
        yield "retention inbox", _forget_inbox(link, kept.inbox)
    if kept.messages is not None:
        yield "retention messages", _empty_log(link, kept.messages)


async def _delete(apart: Apart, name: str, days: float) -> None:
    """Deletes what is old of one kind, in batches, each in a transaction of its own."""
    total, more = 0, True
    ids, what = EACH[name]
    while more:
        rows = await apart.run(SQL[name], SQL[ids], what, {"days": days, "limit": BATCH}, deletes=True)
        deleted = sum(row[0] for row in rows)
        total += deleted
        more = deleted == BATCH or (len(rows) > 1 and deleted > 0)  # in parts: some were left, and are in no one's way
        await asyncio.sleep(0.05)  # others first
    if total:
        log.info("%s: %s were old and are gone", name.replace("_", " "), total)


async def _look(link: Link, name: str, hours: float) -> None:
    """Looks at what may no longer be used, in a few batches, and deletes what isn't."""
    for _ in range(MOST_LOOKS):
        ((looked,),) = await link.execute(SQL[name], {"hours": hours, "limit": BATCH})
        if looked < BATCH:
            break
        await asyncio.sleep(0.05)  # others first


async def _forget_inbox(link: Link, days: float) -> None:
    await inbox.forget(await link.connection(), days)


async def _empty_log(link: Link, days: float) -> None:
    for child, why in (await ring.rotate(await link.connection(), days)).items():
        log.warning("outbox.%s can't be emptied: %s", child, why)
