"""Defines who asks, and what they may do."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .. import texts
from ..checks import MAX_NAME
from ..client.approvals import checked_groups
from ..errors import InvalidInput

RIGHTS = ("look", "decide", "operate")


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks, as `identify` says. `name` is kept with all that they do.

    `may` has "look" (to see all pages), "decide" (to answer questions) and "operate" (to retry, move, cancel, signal,
    pause). `groups` are those that count for votes; by default, those of the database role of that name.

    Raises InvalidInput for a name or a group that can't be stored, and for a right that doesn't exist.
    """

    name: str
    may: Collection[str] = frozenset({"look"})
    groups: Collection[str] | None = None

    def __post_init__(self) -> None:
        texts.check_text(self.name, "name", MAX_NAME)
        if isinstance(self.may, str) or not isinstance(self.may, Collection) or not all(r in RIGHTS for r in self.may):
            raise InvalidInput("may", f"must be some of {', '.join(RIGHTS)}, not {texts.shown(self.may)}")
        checked_groups(self.groups)


LOOKING = Person("local", {"look"})
"""The person of a request where there is no `identify`: anyone on this machine."""
