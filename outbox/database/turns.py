"""Lets functions take turns in one transaction, each behind a savepoint of its own.

A turn is opened by its function's first statement: before it, the session is put back as the function would find it
alone, and the savepoint is set. A function that sends nothing costs nothing.

What can't be put back, or would end the transaction that others have written in, is not sent: the function gets
`NotHere`, and is to be called in a transaction of its own. In the first turn, which no savepoint precedes, it is sent,
and `odd` tells that no turn may follow.

A function may set savepoints, as ORMs do, and go back to them. It can't go back to one of an earlier turn, and with it
behind the savepoint of its own.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from functools import lru_cache
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql
from psycopg.generators import execute
from psycopg.pq import ExecStatus, TransactionStatus

from .steps import Statement

UNDO: Statement = b"ROLLBACK TO SAVEPOINT outbox_turn", {}

CONFLICTS = frozenset({"55P03", "40P01", "40001"})
"""SQLSTATEs of waits for locks that the other turns' locks may have caused, or made longer."""

_TOKENS = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|--[^\n]*|/\*.*?\*/""", re.DOTALL)
"""Texts, quoted names and comments, which say nothing of what a statement does."""

_PLAIN = re.compile(
    r"[\s(]*(select|insert|update|delete|merge|with|values|table|copy|set|reset|show|listen|unlisten|notify|declare|fetch"
    r"|move|close|explain|lock)\b"
)
_WORD = re.compile(r"[\s(]*\w+")
_ODD = re.compile(
    r";\s*\S"  # several statements
    r"|\bset\s+(session\s+|local\s+)?(constraints|transaction|characteristics)\b|\btransaction_(isolation|read_only|deferrable)"
    r"|advisory_xact|\binto\s+(local\s+|global\s+)?temp"
)
_SAVEPOINT = re.compile(
    r"""\s*(savepoint|rollback\s+to(?:\s+savepoint)?|release(?:\s+savepoint)?)\s+("?)([a-z_][\w$]*)\2\s*;?\s*""",
    re.IGNORECASE,
)
_OURS = "outbox_turn"


class NotHere(Exception):
    """The statement is not sent in a transaction that several functions share: its function is to be called alone."""


class Turn:
    """One function's part of a transaction: a block in which the connection watches what the function sends.

    `opening` is sent before its first statement; None for the first turn. Afterwards: `opened`: the function has sent
    something behind its savepoint. `odd`: after which statement no other turn may follow. `refused`: it was not
    sent. `conflict`: a wait for a lock was given up. `failed`: it has left an error, which a rollback to its savepoint
    removes. `broken`: the transaction has ended, or can't be gone on with.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], opening: bytes | None) -> None:
        self._conn, self._opening = conn, opening
        self.opened = self.refused = self.conflict = self.broken = self.failed = False
        self.odd: str | None = None
        self._sent = False  # the opening, though perhaps not to its end
        self._savepoints: list[str] = []  # set in this turn, the innermost last
        self._savepoints_then: list[str] = []  # when what is being sent has succeeded

    @property
    def is_well(self) -> bool:
        """Whether what the function has done can be committed."""
        return not (self.refused or self.conflict or self.broken or self.failed)

    def __enter__(self) -> Turn:
        # An attribute of this connection, so that every cursor, copy, pipeline and block comes through here.
        is_async = isinstance(self._conn, psycopg.AsyncConnection)
        self._conn.wait = self._wait_async if is_async else self._wait  # type: ignore[method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._conn.wait
        status = TransactionStatus.UNKNOWN if self._conn.closed else self._conn.info.transaction_status
        self.failed = status is TransactionStatus.INERROR
        self.broken = (
            not (status is TransactionStatus.INTRANS or (self.failed and self.opened))
            or self._sent > self.opened  # there may be no savepoint, or that of the turn before
            or self._conn._pipeline is not None
            or self._conn._num_transactions != 1
        )

    def _wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        wait: Any = type(self._conn).wait
        try:
            result = wait(self._conn, self._opened(gen), *args, **options)
            self._savepoints = self._savepoints_then
            return result
        except psycopg.Error as error:
            self._failed(error)
            raise

    async def _wait_async(self, gen: Any, *args: Any, **options: Any) -> Any:
        wait: Any = type(self._conn).wait
        try:
            result = await wait(self._conn, self._opened(gen), *args, **options)
            self._savepoints = self._savepoints_then
            return result
        except psycopg.Error as error:
            self._failed(error)
            raise

    def _opened(self, gen: Any) -> Any:
        """Looks at what psycopg is about to send; returns it, behind the opening if that has not been sent."""
        known = frame.f_locals if (frame := getattr(gen, "gi_frame", None)) else {}
        query = known.get("query", known.get("statement"))
        self._savepoints_then = self._savepoints
        if query is not None and (words := self._odd(_text(query, self._conn))):
            self.odd = words
            if self._opening is not None:
                self.refused = True
                raise NotHere(f"not sent in a transaction that other handlers share: {words}")
        if self._opening is None or self._sent:
            return gen
        self._sent = True
        return self._behind(self._opening, gen)

    def _behind(self, opening: bytes, gen: Any) -> Generator[Any, Any, Any]:
        yield from _send(self._conn, opening)
        self.opened = True
        return (yield from gen)

    def _odd(self, text: str) -> str:
        """Does what `odd` does, and follows the savepoints of this turn."""
        if not (found := _SAVEPOINT.fullmatch(text)):
            return odd(text)
        what, name, known = found[1].lower(), found[3] if found[2] else found[3].lower(), self._savepoints
        if what == "savepoint" and name != _OURS:
            self._savepoints_then = [*known, name]
        elif name in known:
            at = len(known) - known[::-1].index(name)
            self._savepoints_then = known[: at if what.startswith("rollback") else at - 1]
        else:
            return what.upper()
        return ""

    def _failed(self, error: psycopg.Error) -> None:
        self.conflict = self.conflict or (self._opening is not None and error.sqlstate in CONFLICTS)


def _text(query: Any, conn: Any) -> str:
    if isinstance(query, bytes):
        return query.decode("utf-8", "replace")
    if isinstance(query, sql.Composable):
        return query.as_string(conn)
    return query if isinstance(query, str) else ""


@lru_cache(maxsize=512)
def odd(text: str) -> str:
    """Returns by which words a statement leaves what can't be put back, ends a transaction, or isn't known; else "".

    Values are left out: this is logged.
    """
    bare = text.lower()
    if "\\" not in text and "$" not in text:  # with these, a text may end elsewhere
        bare = _TOKENS.sub(" ", bare)
    if not _PLAIN.match(bare):
        return (_WORD.match(bare) or [""])[0].strip(" (\n").upper() or "what is no plain statement"
    if found := _ODD.search(bare):
        return "several statements in one" if found[0].startswith(";") else " ".join(found[0].split()).upper()
    return ""


def _send(conn: Any, commands: bytes) -> Generator[Any, Any, None]:
    """Sends commands in one round trip, by the simple protocol: the function may be about to begin a pipeline."""
    conn.pgconn.send_query(commands)
    for result in (yield from execute(conn.pgconn)):
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
