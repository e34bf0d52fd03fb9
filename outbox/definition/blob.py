"""Defines the handle of a large content, and how a content is read, whatever it comes as."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InvalidInput
from ..texts import explain, shown

READ = 2**20
"""Bytes that are read from a content at a time."""


class Blob(BaseModel):
    """Names a large content that is stored beside the data: `Run.store` returns it, `Run.load` takes it.

    It may stand anywhere in a pipeline's data. As long as it does, the content is there. `sha256` is the hash of the
    content, in hex, and `size` its bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # few programs use it

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


def handle(given: Any) -> Blob:
    """Returns a handle, also one that plain JSON data has. Raises InvalidInput, which names `blob`, if it is none."""
    try:
        return given if isinstance(given, Blob) else Blob.model_validate(given)
    except ValidationError as error:
        raise InvalidInput("blob", f"is no handle, as run.store returns it: {explain(error)}") from None


class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int, /) -> bytes: ...


Content: TypeAlias = bytes | bytearray | memoryview | Readable | Iterable[bytes] | AsyncIterable[bytes]
"""What a content may come as."""


def pieces(content: Content, *, is_async: bool) -> Callable[[], Any]:
    """Returns a function that returns the next piece of a content with each call, or an awaitable of it; None: the end.

    Raises InvalidInput, which names `content`, if it is nothing that can be read.
    """
    if isinstance(content, bytes | bytearray | memoryview):
        view = memoryview(content)
        given = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        slices = iter([given[at : at + READ] for at in range(0, len(given), READ)])
        return lambda: next(slices, None)
    if callable(read := getattr(content, "read", None)):
        return lambda: _unless_ended(read(READ))
    if isinstance(content, AsyncIterable) and is_async:
        awaited = aiter(content)
        return lambda: anext(awaited, None)
    if isinstance(content, Iterable):
        plain = iter(content)  # of a str, too: its pieces are refused
        return lambda: next(plain, None)
    what = "async: a plain handler can't read it" if isinstance(content, AsyncIterable) else shown(content)
    raise InvalidInput("content", f"must be bytes, a binary file, or an iterable of bytes, and is {what}")


def _unless_ended(found: Any) -> Any:
    async def later(found: Awaitable[bytes]) -> bytes | None:
        return await found or None

    return later(found) if inspect.isawaitable(found) else found or None
