"""Lets functions take turns in one transaction, each behind a savepoint of its own.

Before its function is called, what opens the turn is sent: it puts the session back as the function would find it
alone, and sets the savepoint. The answer is read before the function's first statement. Postgres works on it while the
function begins, and one wait for an answer is mostly saved.

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
from psycopg.pq.abc import PGresult

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

    `opening` is what opens it; None for the first turn. Call `settle` before the block ends: if the function has sent
    nothing, the answer may be unread. Afterwards: `opened`: the savepoint is set. `odd`: after which statement no other
    turn may follow. `refused`: it was not sent. `conflict`: a wait for a lock was given up. `failed`: it has left an
    error, which a rollback to its savepoint removes. `broken`: the transaction has ended, or can't be gone on with.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], opening: bytes | None) -> None:
        self._conn, self._opening = conn, opening
        self.opened = self.refused = self.conflict = self.broken = self.failed = False
        self.odd: str | None = None
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
        if self._opening is not None:
            self._conn.pgconn.send_query(self._opening)
            self._conn.pgconn.flush()
        return self

    def settle(self) -> None:
        """Reads the answer to the opening, if nothing has read it so far."""
        if self._opening is not None and not self.opened:
            self._wait(self._answered())

    async def settle_async(self) -> None:
        """Does what `settle` does, on an async connection."""
        if self._opening is not None and not self.opened:
            await self._wait_async(self._answered())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._conn.wait
        status = TransactionStatus.UNKNOWN if self._conn.closed else self._conn.info.transaction_status
        self.failed = status is TransactionStatus.INERROR
        self.broken = (
            not (status is TransactionStatus.INTRANS or (self.failed and self.opened))
            or (self._opening is not None and not self.opened)  # there may be no savepoint, or that of the turn before
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
        """Looks at what psycopg is about to send; returns it, behind the answer to the opening."""
        known = frame.f_locals if (frame := getattr(gen, "gi_frame", None)) else {}
        query = known.get("query", known.get("statement"))
        self._savepoints_then = self._savepoints
        if query is not None and (words := self._odd(_text(query, self._conn))):
            self.odd = words
            if self._opening is not None:
                self.refused = True
                raise NotHere(f"not sent in a transaction that other handlers share: {words}")
        return gen if self._opening is None or self.opened else self._behind(gen)

    def _behind(self, gen: Any) -> Generator[Any, Any, Any]:
        yield from self._answered()
        return (yield from gen)

    def _answered(self) -> Generator[Any, Any, None]:
        """Reads the answer to the opening, without a wait if it is there."""
        pgconn = self._conn.pgconn
        pgconn.consume_input()
        while not pgconn.is_busy():
            if (result := pgconn.get_result()) is None:
                break
            _require_success(result)
        else:
            for result in (yield from execute(pgconn)):
                _require_success(result)
        self.opened = True

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


def _require_success(result: PGresult) -> None:
    if result.status == ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(result)
