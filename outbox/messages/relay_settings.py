"""What a relay delivers and where to, which stands in its row; and why it may not begin with other settings.

A relay moves past what it doesn't deliver. With another target, pipeline, topics, entity id or shard than before, it
would move past what is still to be delivered by the former ones, or deliver to another database what was delivered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import SettingsError
from ..texts import printable

Settings = Mapping[str, Any]

_HOW = "See docs/scaling.md on growing"


class Other(NamedTuple):
    """A relay that hands the same messages on by another number of shards: see outbox.relays_sharded_otherwise."""

    name: str
    sharded: bool
    runs: bool
    drained: bool


def check(
    name: str,
    wanted: Settings,
    *,
    had: Settings | None,
    known: bool,
    runs: bool,
    drained: bool,
    others: Sequence[Other],
) -> None:
    """Raises SettingsError if it is its settings that keep a relay from taking its name.

    `had` are those that the name has, if any. It is `known` if it has a row, and `runs` if another process holds it.
    """
    changed = had is not None and had != wanted
    differ = f"({_difference(had, wanted)})" if had is not None else ""
    late = [other for other in others if (changed or not known) and (other.runs or not other.drained)]
    beside = [other for other in others if other.sharded and other.runs]
    if changed and runs:
        raise SettingsError(
            f"relay {name!r} runs elsewhere with other settings {differ}: stop that process, or take another --name"
        )
    if changed and not drained:
        raise SettingsError(
            f"relay {name!r} has messages left for its former settings {differ}: start it with those and --drain "
            "first, and see outbox parked; or take another --name; or, if what is left is to go by the new settings, "
            "start it once with --change-settings"
        )
    if late:
        raise SettingsError(
            f"{_named(late)} to this pipeline by another number of shards, and has not drained or runs: entities would "
            "get a second workflow in another database. Stop what writes messages, drain and stop the former relays, "
            f"then start the new ones with --from-now. {_HOW}. If other entities are meant, start this one once with "
            "--change-settings"
        )
    if others and not known:
        raise SettingsError(
            f"{_named(others)} to this pipeline by another number of shards, and a new name would deliver the whole "
            f"log again, to other databases: start it with --from-now. {_HOW}"
        )
    if beside:
        raise SettingsError(f"{_named(beside)} to this pipeline by another number of shards: run the one or the other")


def _named(others: Sequence[Other]) -> str:
    names = ", ".join(repr(printable(other.name)) for other in others)
    return f"another relay ({names}) delivers" if len(others) == 1 else f"each of the relays {names} delivers"


def _difference(had: Settings, wanted: Settings) -> str:
    """Returns which settings differ, and how."""
    names = sorted(name for name in {*had, *wanted} if had.get(name) != wanted.get(name))
    return "; ".join(f"{name}: {_shown(had.get(name))}, now {_shown(wanted.get(name))}" for name in names)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return printable(str(value)) if value else "none"
