"""Asks the database for a tool, and tells what went wrong as an error of the tool, which the model reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from mcp.server.mcpserver.exceptions import ToolError

from ..errors import OutboxError
from ..operations.sessions import Conn, Late, Sessions
from ..texts import printable, without_passwords
from . import results

T = TypeVar("T")

VIEWER = (
    "the database role of this server may only look. Give one that may operate, of the group outbox_operator "
    "(docs/roles.md)"
)


class Unavailable(ToolError):
    """The database doesn't answer now. It may do so later."""


class Asking:
    """Reads by sessions that can't change anything, and changes something by others, if there are any."""

    def __init__(self, reads: Sessions, writes: Sessions) -> None:
        self._reads, self._writes = reads, writes

    async def look(self, find: Callable[[Conn], Any], rest: str = "") -> str:
        """Returns what a lookup finds as the text of a result. `rest` says how to read what is cut."""
        return await self.read(lambda conn: results.document(find(conn), rest))

    async def look_at(self, find: Callable[[Conn], Any], at: str | None, offset: int, rest: str) -> str:
        """Returns what a lookup finds, or the part of it that the model has asked for."""
        if at is None:
            return await self.look(find, rest)
        return await self.read(lambda conn: results.part(find(conn), at, offset))

    async def read(self, find: Callable[[Conn], T]) -> T:
        """Returns what a lookup finds. Raises ToolError, with the reason, if it can't be had."""
        try:
            return await self._reads.run(find)
        except Exception as error:
            raise _told(error, self._reads) from error

    async def change(self, what: Callable[[Conn], Any]) -> str:
        """Makes a change, and returns what it returns as the text of a result. Raises what `make` raises."""
        return results.document(await self.make(what))

    async def make(self, what: Callable[[Conn], T]) -> T:
        """Makes a change in a transaction, and returns what it returns. Raises ToolError if it is refused."""
        try:
            return await self._writes.run(what)
        except psycopg.errors.QueryCanceled as error:
            raise ToolError("It is held by somebody else's transaction: nothing was changed. Try again.") from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise ToolError(f"Nothing was changed: {VIEWER}") from error
        except Exception as error:
            told = _told(error, self._writes)
            if isinstance(told, Unavailable):
                told = Unavailable(f"{told} It may have been done: look whether it was before you try again.")
            raise told from error


def _told(error: Exception, sessions: Sessions) -> ToolError:
    if isinstance(error, Late | psycopg.OperationalError) and not isinstance(error, OutboxError):
        return Unavailable(sessions.explain(error))
    if not isinstance(error, OutboxError):
        return ToolError(sessions.explain(error))
    diag = error.diag if isinstance(error, psycopg.Error) else None
    said = (diag and diag.message_primary) or str(error)
    hint = (diag and diag.message_hint) or ""
    return ToolError(printable(without_passwords(f"{said} ({hint})" if hint else said)))
