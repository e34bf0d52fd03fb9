"""Keeps the bank's book: what was charged, by a witness that is neither in Postgres nor in a process of the run.

It is a file of lines, in the order in which the bank has received what they say. Each answer follows from the lines
before it: a key is charged once, and later charges of it are answered as the first. So a process that writes to it may
die or freeze at any point.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

from .history import Entry

BOOK = Path(os.environ.get("CHAOS_BOOK", "book.jsonl"))
_lines = itertools.count()


def receipt(key: str) -> str:
    """Returns what the bank answers to a charge."""
    return f"receipt of {key}"


def charge(key: str) -> None:
    """Charges a key, unless it is charged already."""
    _write("charge", key)


def refuse(key: str) -> bool:
    """Refuses to charge a key. Returns False if it is charged already: then this is answered as the first charge."""
    return not _is_charged(key, before=_write("refuse", key))


def look(key: str, what: str = "look") -> bool:
    """Returns whether a key is charged. `what`: "look" for a handler's look_up, "view" for a person."""
    return _is_charged(key, before=_write(what, key))


def read(book: Path) -> list[Entry]:
    """Returns all lines of a book."""
    return [Entry(**json.loads(line)) for line in book.read_text().splitlines()] if book.exists() else []


def _write(what: str, key: str) -> bytes:
    """Writes a line, at the end and in one piece: no other process's line is in the middle of it."""
    told = {"what": what, "key": key, "by": f"{os.getpid()}-{next(_lines)}", "at": time.time()}
    line = json.dumps(told).encode() + b"\n"
    with BOOK.open("ab", buffering=0) as book:
        book.write(line)
    return line


def _is_charged(key: str, *, before: bytes) -> bool:
    until, _, _ = BOOK.read_bytes().partition(before)
    return json.dumps({"what": "charge", "key": key})[:-1].encode() in until
