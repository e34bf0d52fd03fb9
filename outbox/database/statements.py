"""Loads `sql/queries/<step>.sql` into named, frozen statements, and writes the arrays that they unnest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*\n?", re.MULTILINE)


@cache
def load(step: str) -> Mapping[str, bytes]:
    """Returns the statements of one step by name, without comments, as bytes that psycopg takes unchanged."""
    text = files("outbox.sql").joinpath("queries", f"{step}.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return MappingProxyType(
        {
            name: _COMMENT.sub("", body).strip().rstrip(";").encode()
            for name, body in zip(parts[::2], parts[1::2], strict=True)
        }
    )


def array(values: Iterable[float | str]) -> str:
    """Returns the text form of a Postgres array of values that need no quotes: ids, numbers, names without spaces."""
    return "{" + ",".join(map(str, values)) + "}"


def text_array(values: Iterable[str | None]) -> str:
    """Returns the text form of a Postgres array of any texts.

    psycopg dumps a list element by element, each through several calls. In a batch of 200, that was a fifth of a
    worker's time.
    """
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    return '"' + value.replace('"', '\\"') + '"'
