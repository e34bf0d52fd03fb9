"""Lists what the schema consists of: the files of `sql/`, in the order in which they are applied, with their hashes.

`sql/history.txt` lists the hash of each text of a replaceable file that this release and earlier ones have shipped.
`make schema` appends to it; no line is ever changed or removed. A text that was replaced must not come back, because an
older release would take it for its own. A test checks this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

_FIRST = "functions/ids"
"""Functions that column defaults call: they must exist before any table."""

_GRANTS = "grants"
"""The rights of the groups: applied again when their text has changed, and after each step of the structure."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A SQL file. A numbered step has no `hash`; a replaceable file has the hash of its text."""

    name: str
    sql: str
    hash: str | None = None


@cache
def transactions() -> tuple[tuple[Migration, ...], ...]:
    """Returns what this Outbox ships, in order: each step of the structure alone, all replaceable files together."""
    steps = [Migration(name, text_of(f"structure/{name}")) for name in _names("structure")]
    names = [*(f"functions/{name}" for name in _names("functions")), *(f"views/{name}" for name in _names("views"))]
    replaced = [_replaceable(name) for name in [*names, "triggers", "comments"] if name != _FIRST]
    return ((_replaceable(_FIRST),), *((step,) for step in steps), tuple(replaced))


def all_migrations() -> list[Migration]:
    """Returns what this Outbox ships, in the order in which it is applied."""
    return [migration for together in transactions() for migration in together]


@cache
def grants() -> Migration:
    """Returns the rights of the groups. The steps are part of their hash, because a new table needs rights."""
    return _replaceable(_GRANTS, *_names("structure"))


@cache
def history() -> Mapping[str, Sequence[str]]:
    """Returns the hashes that this release and earlier ones have shipped, by name, newest last."""
    shipped: dict[str, list[str]] = {}
    for line in files("outbox.sql").joinpath("history.txt").read_text(encoding="utf-8").splitlines():
        name, text_hash = line.split()
        shipped.setdefault(name, []).append(text_hash)
    return shipped


def text_of(name: str) -> str:
    """Returns the text of a SQL file, by its path without the extension."""
    return files("outbox.sql").joinpath(f"{name}.sql").read_text(encoding="utf-8")


def _replaceable(name: str, *more: str) -> Migration:
    text = text_of(name)
    return Migration(name, text, sha256("\n".join([text, *more]).encode()).hexdigest()[:16])


def _names(folder: str) -> list[str]:
    found = files("outbox.sql").joinpath(folder).iterdir()
    return sorted(item.name.removesuffix(".sql") for item in found if item.name.endswith(".sql"))
