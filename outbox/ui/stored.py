"""Writes stored JSON for people: as it is stored, in lines, without what is to be hidden, and no longer than asked.

Numbers are never rounded. What is long ends early: a page doesn't contain ten megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any

from ..documents import Stored, Unread

HIDDEN = "(hidden)"
FOLD = 20_000
"""Characters of a document that a page shows: what a person scrolls through. The rest is shown on request."""

Hide = Collection[str] | Callable[[str], bool]
"""What is not shown: names of fields, or paths of them such as "customer.card"; or a function that is asked by path."""


class Hiding:
    """Tells which fields of stored documents are not shown."""

    def __init__(self, hide: Hide | None) -> None:
        if isinstance(hide, str):
            raise TypeError("hide must be names of fields, or a function, not a string")
        self._asked = hide if callable(hide) else None
        self._names = frozenset(() if hide is None or callable(hide) else hide)
        self.is_empty = hide is None

    def hides(self, path: str) -> bool:
        """Tells whether the field with this path (without the places in lists) is hidden."""
        if self._asked is not None:
            return self._asked(path)
        return path in self._names or path.rpartition(".")[2] in self._names

    def hides_some(self, value: Any, path: str = "") -> bool:
        """Tells whether a document has a hidden field."""
        if self.is_empty:
            return False
        if isinstance(value, Unread):
            return True  # it can't be read, so it may have one
        if isinstance(value, dict):
            paths = ((f"{path}.{key}" if path else key, each) for key, each in value.items())
            return any(self.hides(where) or self.hides_some(each, where) for where, each in paths)
        return isinstance(value, list) and any(self.hides_some(each, path) for each in value)


NOTHING = Hiding(None)


def text(value: Any, hiding: Hiding = NOTHING, most: int | None = None, path: str = "") -> tuple[str, bool]:
    """Returns a document as indented text, and whether it goes on after `most` characters. `path` leads to it."""
    parts: list[str] = []
    size = 0
    for part in _parts(value, hiding, path, "\n"):
        parts.append(part)
        size += len(part)
        if most is not None and size > most:
            return "".join(parts)[:most], True
    return "".join(parts), False


def scalar(value: Any) -> str:
    """Returns a value that is neither an object nor a list as JSON."""
    if isinstance(value, Stored):
        return value.text
    return json.dumps(value, ensure_ascii=False, default=str)


def _parts(value: Any, hiding: Hiding, path: str, line: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        start = "{"
        for key, each in value.items():
            where = f"{path}.{key}" if path else str(key)
            yield f"{start}{line}  {scalar(key)}: "
            if hiding.hides(where):
                yield HIDDEN
            else:
                yield from _parts(each, hiding, where, f"{line}  ")
            start = ","
        yield f"{line}}}"
    elif isinstance(value, list) and value:
        start = "["
        for each in value:
            yield f"{start}{line}  "
            yield from _parts(each, hiding, path, f"{line}  ")
            start = ","
        yield f"{line}]"
    elif isinstance(value, Unread):
        yield HIDDEN if hiding.hides_some(value) else value
    else:
        yield scalar(value)
