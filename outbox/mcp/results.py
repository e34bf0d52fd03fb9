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

ROW = 1_000
"""Characters that a row of a list has room for: all its names and ids, and the beginning of its long texts."""

PLACE = 1_000
"""Characters of the pointer to a place. What is further in is read with what it is in."""

KEY = 200
"""Characters of a key that are shown. Keys are names, and longer ones are data in the wrong place."""

CUTS = 20
"""How many of the cut places a result lists."""


def document(value: Any, rest: str = "") -> str:
    """Returns a value as JSON of up to about MOST characters. `rest` says how to read what is cut, if anything is."""
    cuts: list[dict[str, Any]] = []
    fitted = _fit(value, MOST, "", cuts)
    if not cuts:
        return text(fitted)
    return text({**fitted, "cut": cuts[:CUTS], "how_to_read_what_is_cut": rest})


def rows(found: Sequence[Any]) -> int:
    """Returns how many rows of a list have room in a result: one at least. The others are for the next page."""
    room, fitting = MOST, 0
    for row in found:
        room -= min(_size(row, ROW), ROW) + len(", ")
        if room < 0:
            break
        fitting += 1
    return max(1, fitting)


def part(value: Any, at: str, offset: int) -> str:
    """Returns a part of a value as JSON: of the string or the JSON text at a JSON pointer, what follows an offset.

    Raises NotFound if the pointer leads nowhere.
    """
    found = _at(value, at)
    is_string = isinstance(found, str)
    ahead = found[offset : offset + MOST + 1] if is_string else _between(found, offset, offset + MOST + 1)
    return text({
        "at": at, "is": "string" if is_string else "JSON", "offset": offset, "text": ahead[:MOST],
        "next_offset": offset + MOST if len(ahead) > MOST else None,
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


def _between(value: Any, start: int, end: int) -> str:
    """Returns characters of a value's JSON text. What comes later is not written."""
    found, place = list[str](), 0
    for each in _parts(value):
        if place + len(each) > start:
            found.append(each[max(0, start - place) : end - place])
        place += len(each)
        if place >= end:
            break
    return "".join(found)


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
    for each in _parts(value[: most + 1] if isinstance(value, str) else value):
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
        cuts.append({"at": at, "items": len(value), "items_shown": len(items)})
    fitted: dict[Any, Any] = {}
    for done, (key, each) in enumerate(sorted(items, key=lambda item: _size(item[1], room))):
        name = _size(_key(key), room) + len(": , ")
        share = max(LEAST, room // (len(items) - done) - name)
        place, inner = f"{at}/{_token(key)}", list[dict[str, Any]]()
        fitted[key] = _fit(each, share, place, inner)
        if len(place) <= PLACE and _key(key) == key:
            cuts += inner
        elif {"at": at} not in cuts:
            cuts.append({"at": at})
        room -= _size(fitted[key], share) + name
    if isinstance(value, dict):
        return {_key(key): fitted[key] for key, _ in items}
    return [fitted[key] for key, _ in items]


def _key(key: Any) -> Any:
    return key[:KEY] + "…" if isinstance(key, str) and len(key) > KEY else key


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
