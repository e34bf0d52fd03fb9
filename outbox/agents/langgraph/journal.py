"""Keeps what a graph's checkpointer stores during an attempt, entry by entry, each under the fence of the job."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ...definition.run import Run
from ...errors import HandlerError
from .encoding import Json, dumps
from .errors import StateTooLarge

MAX_ENTRY = 60 * 2**20
"""Most bytes of JSON that are stored at once. It is in memory a few times over while it is written and read."""

_KEY = "langgraph:{}"


class Journal:
    """Writes operations of a checkpointer in their order, and reads them in the next attempt.

    What comes while an entry is written goes into the next entry together. An operation has been stored when `append`
    returns. After an entry that could not be written, nothing more is: the state would have a gap.
    """

    def __init__(self, run: Run[Any]) -> None:
        self._run = run
        self._entries = 0
        self._waiting: list[str] = []
        self._writer: asyncio.Task[None] | None = None
        self._failed: BaseException | None = None

    async def read(self) -> list[Json]:
        """Returns the operations that earlier attempts at this work have stored."""
        operations: list[Json] = []
        while True:
            try:
                text = await self._run.once(_KEY.format(self._entries + 1), entry, None)
            except _NoEntry:
                return operations
            operations += json.loads(text)
            self._entries += 1

    async def append(self, operation: Json, where: str) -> None:
        """Stores an operation. `where` names what it is about.

        Raises LeaseLost if the job was taken away, StateTooLarge if the operation has too many bytes.
        """
        if self._failed is not None:
            raise self._failed
        try:
            self._waiting.append(fitting(dumps(operation), where))
        except StateTooLarge as error:
            self._failed = error
            raise
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await asyncio.shield(self._writer)  # a node that is cancelled doesn't leave half an entry

    async def close(self) -> None:
        """Stops writing, and waits until nothing is being written."""
        if self._writer is not None:
            self._failed = self._failed or HandlerError("the attempt of the graph has ended")
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while self._waiting:
                text = f"[{','.join(self._taken())}]"
                kept = await self._run.once(_KEY.format(self._entries + 1), entry, text)
                if kept != text:
                    raise HandlerError(f"stage {self._run.stage}: this attempt has stored another state of the graph")
                self._entries += 1
        except BaseException as error:
            self._failed = error
            raise

    def _taken(self) -> list[str]:
        """Takes what is waiting, as much as fits into an entry."""
        taken, size = [self._waiting.pop(0)], 0
        while self._waiting and (size := size + len(taken[-1])) + len(self._waiting[0]) < MAX_ENTRY // 8:
            taken.append(self._waiting.pop(0))
        return taken


def entry(text: str | None) -> str:
    """Returns an entry of the journal, for `run.once` to keep."""
    if text is None:
        raise _NoEntry
    return text


def fitting(text: str, where: str) -> str:
    """Returns JSON text. Raises StateTooLarge, which names `where`, if it is larger than what is stored at once."""
    # An entry is a text within JSON, so its quotes are two bytes each. A character may have four.
    if len(text) > MAX_ENTRY // 8 and (size := len(dumps(text).encode())) > MAX_ENTRY:
        raise StateTooLarge(where, size, MAX_ENTRY)
    return text


class _NoEntry(Exception):
    """There is no further entry."""
