"""Stores large contents in parts that contents share, and reads them part by part.

A content is cut where its text says so, not where a part is full: after the end of a JSON object, chosen by the bytes
before it. A conversation that has grown has all of its former parts but the last, and so does one to which
something was added at the beginning.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from ..database import statements
from ..database.steps import Call, Statement
from ..definition.blob import Blob, Content, pieces
from ..errors import HandlerError, InvalidInput, LeaseLost, NotFound
from .job import Job

SQL = statements.load("blobs")

MAX_SIZE = 2**30
"""Most bytes of a content: 4,000 parts or more."""

LEAST_PART, NEAR, MOST_PART = 4 * 2**10, 16 * 2**10, 256 * 2**10
"""Bytes of a part: between the first two where its text says so, and up to the third where there is no text.

Each turn of a conversation writes its last part again, and each part costs a row and its hash with each content.
"""

BATCH = 4 * 2**20
"""Bytes of parts that are in memory at a time, and go into one statement."""

TRIES = 3
"""How often a content in memory is stored before it is given up, if its parts are deleted meanwhile."""

WRITES = frozenset({SQL["parts_write"], SQL["blob_write"]})
"""The statements that keep something."""

_END = b"},"
"""Where a part may end: where an object in a list ends, or in another object."""

_BEFORE = 48
"""Bytes before such a place that choose."""

T = TypeVar("T")
Steps = Generator[Statement | Call, Any, T]


class Stored(NamedTuple):
    """What was written of a content: its handle, and the hashes of its parts in their order."""

    blob: Blob
    parts: list[bytes]


class Parts:
    """Cuts a content that comes piece by piece. Where it is cut doesn't depend on the pieces."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, piece: bytes | bytearray | memoryview) -> list[bytes]:
        """Takes a piece, and returns the parts that are whole now."""
        self._held += piece
        whole = []
        while len(self._held) >= MOST_PART:
            whole.append(self._take())
        return whole

    def rest(self) -> list[bytes]:
        """Returns the parts that are left at the end."""
        rest = []
        while len(self._held) > NEAR:
            rest.append(self._take())
        return [*rest, bytes(self._held)] if self._held else rest

    def _take(self) -> bytes:
        end = self._end()
        part = bytes(self._held[:end])
        del self._held[:end]
        return part

    def _end(self) -> int:
        """Returns the end before which the bytes have the least checksum: two that look nearly there find the same."""
        ends, at = {}, LEAST_PART
        while (at := self._held.find(_END, at, NEAR) + len(_END)) >= LEAST_PART:
            ends[zlib.crc32(self._held[at - _BEFORE : at])] = at
        if ends:
            return ends[min(ends)]
        at = self._held.find(_END, NEAR - 1, MOST_PART)
        return min(len(self._held), MOST_PART) if at < 0 else at + len(_END)


def store(job: Job, content: Content) -> Steps[Blob]:
    """Returns the steps that store a content for a job's workflow. Raises LeaseLost if the job was taken away."""
    again = isinstance(content, bytes | bytearray | memoryview)  # a file or an iterable has been read
    for _ in range(TRIES if again else 1):
        stored = yield from _upload(pieces(content, is_async=job.stage.is_async))
        held, there, _ = yield from _refer(job, stored)
        if not held:
            raise LeaseLost(f"{job.stage.queue} {job.entity_id}: {job.lost or 'the job was taken away'}")
        if there:
            return stored.blob
    raise HandlerError(
        "parts of the content were deleted before all of it was stored: a workflow that had them was erased, "
        "or it took more than a day. Store it again"
    )


def keep(job: Job, content: bytes, key: str, function: str) -> Steps[tuple[bool, bool]]:
    """Returns the steps that store a result of `run.once`, and tell whether the job is held and whether it was kept."""
    for _ in range(TRIES):
        stored = yield from _upload(pieces(content, is_async=False))
        held, there, made = yield from _refer(job, stored, key, function)
        if there or not held:
            return held, made
    raise HandlerError(f"once({key!r}): parts of the result are deleted as soon as they are written")


def load_text(hash_: str) -> Steps[str]:
    """Returns the steps that read a result that `keep` has stored."""
    return (yield from _load(Reading(hash_))).decode()


def load(blob: Blob) -> Steps[bytes]:
    """Returns the steps that read a content whole. Raises NotFound if it isn't there."""
    return (yield from _load(Reading(blob.sha256, blob.size)))


def _load(reading: Reading) -> Steps[bytes]:
    found = bytearray()
    while statement := reading.next():
        for content in reading.take((yield statement)):
            found += content
    return bytes(found)


class Reading:
    """Reads a content, a few of its parts at a time: `next` returns a statement, and `take` what its rows tell.

    The handle comes from data, which others may write: its `size` is checked, and nothing else depends on it.
    """

    def __init__(self, hash_: str, size: int | None = None) -> None:
        self._hash, self._size = hash_, size
        self._parts: list[bytes] | None = None
        self._at = 0

    def next(self) -> Statement | None:
        """Returns the next statement, or None at the end."""
        if self._parts is None:
            return SQL["blob_parts"], {"blob": self._hash}
        parts = self._parts[self._at : self._at + BATCH // NEAR]
        return (SQL["blob_read"], {"parts": parts, "most": BATCH}) if parts else None

    def take(self, rows: list[Any]) -> list[bytes]:
        """Returns the contents of the parts that a statement has read. Raises NotFound if the content isn't there."""
        if self._parts is None:
            if not rows:
                raise NotFound(f"there is no blob {self._hash}: it was never stored, or nothing used it any more")
            ((size, self._parts),) = rows
            if self._size not in (None, size):
                raise NotFound(f"there is no blob {self._hash} of {self._size:,} bytes: it has {size:,}")
            return []
        self._at += len(rows)
        contents = [content for (content,) in rows]
        if None in contents:
            raise NotFound(f"blob {self._hash} is not there any more: it was deleted while it was read")
        return contents


def stream(blob: Blob, take: Callable[[Statement], list[Any]]) -> Iterator[bytes]:
    """Yields a content part by part."""
    reading = Reading(blob.sha256, blob.size)
    while statement := reading.next():
        for content in reading.take(take(statement)):
            yield bytes(content)


async def stream_async(blob: Blob, take: Callable[[Statement], Awaitable[list[Any]]]) -> AsyncGenerator[bytes]:
    """Yields a content part by part."""
    reading = Reading(blob.sha256, blob.size)
    while statement := reading.next():
        for content in reading.take(await take(statement)):
            yield bytes(content)


def _upload(next_piece: Callable[[], Any]) -> Steps[Stored]:
    """Writes the parts that are not there, and keeps the others from being swept for a day."""
    whole, size = sha256(), 0
    hashes: list[bytes] = []
    coming: list[bytes] = []
    parts = Parts()
    while (piece := (yield from _next(next_piece))) is not None:
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise InvalidInput("content", f"has a piece that is no bytes, but {type(piece).__name__}")
        size += len(piece)
        if size > MAX_SIZE:
            raise InvalidInput("content", f"has more than {MAX_SIZE:,} bytes. Store it elsewhere, keep a link")
        whole.update(piece)
        coming += parts.feed(piece)
        if sum(map(len, coming)) >= BATCH:
            hashes += yield from _write(coming)
            coming = []
    hashes += yield from _write(coming + parts.rest())
    return Stored(Blob(sha256=whole.hexdigest(), size=size), hashes)


def _next(next_piece: Callable[[], Any]) -> Steps[Any]:
    piece = next_piece()
    return (yield Call(lambda: piece)) if inspect.isawaitable(piece) else piece


def _write(parts: list[bytes]) -> Steps[list[bytes]]:
    """Writes parts, and returns their hashes."""
    hashes = [sha256(part).digest() for part in parts]
    by_hash = dict(zip(hashes, parts, strict=True))
    if by_hash:
        there = {found for (found,) in (yield SQL["parts_keep"], {"parts": list(by_hash)})}
        missing = [part for digest, part in by_hash.items() if digest.hex() not in there]
        if missing:
            yield SQL["parts_write"], {"contents": missing}
    return hashes


def _refer(
    job: Job, stored: Stored, key: str | None = None, function: str | None = None
) -> Steps[tuple[bool, bool, bool]]:
    (row,) = yield SQL["blob_write"], {
        "id": job.workflow_id, "job": job.id, "worker": job.owner, "attempt": job.attempt, "entered": job.entered,
        "stage": job.stage.name, "key": key, "function": function, "blob": stored.blob.sha256, "size": stored.blob.size,
        "parts": stored.parts,
    }  # fmt: skip
    return row  # type: ignore[no-any-return]
