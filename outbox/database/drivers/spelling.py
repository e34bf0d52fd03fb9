"""Spells statements, which are written for psycopg, as other drivers take them.

All values are sent as text. Which types a driver makes of Python's values, and what an application has registered for
them, is then of no importance: the statement casts each value to its type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

from ..statements import text_array
from ..steps import Statement

_PARAMETER = re.compile(r"%(?:\((\w+)\)s|%)")

_QUOTED_OR_END = re.compile(
    r"""'(?:[^']|'')*'|"[^"]*"|--[^\n]*|/\*.*?\*/|(\$\w*\$).*?\1|\bBEGIN\ ATOMIC\b.*?^END(?=;)|;""",
    re.DOTALL | re.MULTILINE,
)
"""What may have a semicolon in it that ends no command, and one that does."""
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


@lru_cache(maxsize=200)
def commands(script: str) -> tuple[str, ...]:
    """Returns the commands of a script, for drivers that take one at a time.

    It knows quotes, comments and bodies of functions as the scripts of Outbox have them: what is BEGIN ATOMIC has its
    END at the start of a line.
    """
    found, start = [], 0
    for each in _QUOTED_OR_END.finditer(script):
        if each[0] == ";":
            found.append(script[start : each.start()])
            start = each.end()
    found.append(script[start:])
    return tuple(command for command in found if _COMMENT.sub("", command).strip())


def named(statement: Statement) -> tuple[str, dict[str, str | None]]:
    """Returns a statement with parameters such as `%(name)s`, and its values by name."""
    sql, values = statement
    return _as_texts(sql), {name: _text(value) for name, value in values.items()}


def numbered(statement: Statement) -> tuple[str, tuple[str | None, ...]]:
    """Returns a statement with parameters such as `$1`, and its values in their order."""
    sql, values = statement
    text, names = _by_number(sql)
    return text, tuple(_text(values[name]) for name in names)


def listed(statement: Statement) -> tuple[str, tuple[str | None, ...]]:
    """Returns a statement with parameters `%s`, and a value for each of them."""
    sql, values = statement
    text, names = _in_order(sql)
    return text, tuple(_text(values[name]) for name in names)


@lru_cache(maxsize=200)
def _as_texts(sql: bytes) -> str:
    return _PARAMETER.sub(lambda found: f"%({found[1]})s::text" if found[1] else "%%", sql.decode())


@lru_cache(maxsize=200)
def _by_number(sql: bytes) -> tuple[str, tuple[str, ...]]:
    names: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return f"${names.setdefault(found[1], len(names) + 1)}::text" if found[1] else "%"

    text = _PARAMETER.sub(number, sql.decode())
    return text, tuple(names)


@lru_cache(maxsize=200)
def _in_order(sql: bytes) -> tuple[str, tuple[str, ...]]:
    text = sql.decode()
    names = tuple(found[1] for found in _PARAMETER.finditer(text) if found[1])
    return _PARAMETER.sub(lambda found: "%s::text" if found[1] else "%%", text), names


def _text(value: Any) -> str | None:
    """Returns a value as Postgres reads it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Iterable):
        return text_array(map(_text, value))
    return str(value)
