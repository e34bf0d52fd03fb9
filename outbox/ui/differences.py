"""Compares two versions of a document: which fields came, went or have other values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import Any, NamedTuple

from . import stored
from .stored import HIDDEN, Hiding

MOST = 50
"""Differences that are told: of more, a person reads the two documents."""

LONGEST = 500
"""Characters of a value that are told."""

_ABSENT: Any = object()


class Difference(NamedTuple):
    """A field that has changed, by its path. `before` or `after` is None if it wasn't or isn't there."""

    path: str
    before: str | None
    after: str | None


def differences(before: Any, after: Any, hiding: Hiding = stored.NOTHING) -> tuple[list[Difference], bool]:
    """Returns the first differences of two documents, and whether there are more."""
    found = list(islice(_compare(before, after, hiding, "", ""), MOST + 1))
    return found[:MOST], len(found) > MOST


def _compare(before: Any, after: Any, hiding: Hiding, shown: str, path: str) -> Iterator[Difference]:
    """Yields what differs at a path. `shown` is the path with the places in lists."""
    whole = bool(path) and hiding.hides(path)  # of what is hidden, nothing within is told
    if isinstance(before, dict) and isinstance(after, dict) and not whole:
        for key in dict.fromkeys([*before, *after]):
            at = f"{shown}.{key}" if shown else str(key)
            where = f"{path}.{key}" if path else str(key)
            yield from _compare(before.get(key, _ABSENT), after.get(key, _ABSENT), hiding, at, where)
    elif isinstance(before, list) and isinstance(after, list) and not whole:
        for n, (a, b) in enumerate(zip_longest(before, after, fillvalue=_ABSENT)):
            yield from _compare(a, b, hiding, f"{shown}[{n}]", path)
    elif before is _ABSENT or after is _ABSENT or stored.text(before)[0] != stored.text(after)[0]:
        yield Difference(shown, _told(before, hiding, path), _told(after, hiding, path))


def _told(value: Any, hiding: Hiding, path: str) -> str | None:
    if value is _ABSENT:
        return None
    if path and hiding.hides(path):
        return HIDDEN
    text, more = stored.text(value, hiding, LONGEST, path)
    return f"{text}…" if more else text
