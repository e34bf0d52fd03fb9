"""Writes what tools return: JSON that a model reads, cut to a size, with what can't be seen as escapes.

All texts in it come from the database, where anybody may have written them. In JSON they stay strings: they can't end
the document that they are in, and no character in them is invisible. A result is never longer than a model can read:
what is cut is listed with the place at which the same tool reads on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from ..documents import Stored
from ..errors import NotFound

MOST = 16_000
"""Characters of a result: some 4,000 tokens. Clients warn of results of 10,000 tokens, and refuse those of 25,000."""

LEAST = 40
"""Characters that a value has room for, if it is there at all. With less, fewer values are shown."""

CUTS = 20
"""How many of the cut places a result lists."""


def document(value: Any, rest: str = "") -> str:
    """Returns a value as JSON of up to about MOST characters. `rest` says how to read what is cut, if anything is."""
    cuts: list[dict[str, Any]] = []
    fitted = _fit(value, MOST, "", cuts)
    if not cuts:
        return text(fitted)
    return text({**fitted, "cut": cuts[:CUTS], "how_to_read_what_is_cut": rest})


def part(value: Any, at: str, offset: int) -> str:
    """Returns a part of a value as JSON: of the string or the JSON text at a JSON pointer, what follows an offset.

    Raises NotFound if the pointer leads nowhere.
    """
    found = _at(value, at)
    whole = found if isinstance(found, str) else text(found)
    piece = whole[offset : offset + MOST]
    end = offset + len(piece)
    return text({
        "at": at, "is": "string" if isinstance(found, str) else "JSON", "characters": len(whole), "offset": offset,
        "text": piece, "next_offset": end if end < len(whole) else None,
    })  # fmt: skip


def text(value: Any) -> str:
    """Returns a value as JSON. Numbers of stored documents are as they are stored."""
    return "".join(_parts(value))


def _parts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        start = "{"
        for key, each in value.items():
            yield f"{start}{_string(str(key))}: "
            yield from _parts(each)
            start = ", "
        yield "}" if value else "{}"
    elif isinstance(value, list | tuple):
        start = "["
        for each in value:
            yield start
            yield from _parts(each)
            start = ", "
        yield "]" if value else "[]"
    elif isinstance(value, Stored):
        yield value.text
    elif value is None or isinstance(value, bool | int | float):
        yield json.dumps(value)
    else:
        yield _string(value.isoformat() if isinstance(value, datetime) else str(value))


_UNSEEN = re.compile(r"[^ -~]")


def _string(value: str) -> str:
    """Returns a JSON string. Models read what people don't see: signs without a shape, of direction, of tags."""
    written = json.dumps(value, ensure_ascii=False)
    if written.isprintable():
        return written
    return _UNSEEN.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], written)


def _size(value: Any, most: int) -> int:
    """Returns how many characters of JSON a value has, counted until it is more than `most`."""
    size = 0
    for each in _parts(value if not isinstance(value, str) else value[: most + 1]):
        size += len(each)
        if size > most:
            break
    return size


def _fit(value: Any, room: int, at: str, cuts: list[dict[str, Any]]) -> Any:
    """Returns a value with no more than about `room` characters of JSON, and notes what of it is cut, and where.

    Small values of an object or a list stay whole; the large ones share the rest.
    """
    if _size(value, room) <= room:
        return value
    if isinstance(value, str):
        cuts.append({"at": at, "characters": len(value), "shown": room})
        return value[:room] + "…"
    if not isinstance(value, dict | list | tuple):
        return value  # a number of thousands of digits
    items = list(islice(value.items() if isinstance(value, dict) else enumerate(value), max(1, room // LEAST)))
    if len(items) < len(value):
        cuts.append({"at": at, "items": len(value), "shown": len(items)})
    fitted: dict[Any, Any] = {}
    for done, (key, each) in enumerate(sorted(items, key=lambda item: _size(item[1], room))):
        share = max(LEAST, room // (len(items) - done))
        name = f"{key}" if isinstance(value, list | tuple) else f'"{key}": '
        fitted[key] = _fit(each, max(LEAST, share - len(name)), f"{at}/{_token(key)}", cuts)
        room -= _size(fitted[key], share) + len(name)
    return {key: fitted[key] for key, _ in items} if isinstance(value, dict) else [fitted[key] for key, _ in items]


def _token(key: object) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _at(value: Any, pointer: str) -> Any:
    """Returns what a JSON pointer (RFC 6901) leads to."""
    if not pointer:
        return value
    for token in pointer.removeprefix("/").split("/"):
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, Sequence) and not isinstance(value, str) and re.fullmatch(r"\d{1,9}", key, re.ASCII) \
                and int(key) < len(value):  # fmt: skip
            value = value[int(key)]
        else:
            raise NotFound(
                f"there is nothing at {pointer}: give a place that a result has listed as cut, or a part of it"
            )
    return value
