"""Defines flow control: how many attempts of a stage run at once or start per second, and which of them go first.

Limits hold across all workers. A definition declares them, `outbox deploy` writes them, and the claim in
sql/functions/limits.sql enforces them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..checks import check_whole
from ..errors import DefinitionError
from ..texts import shown

_MAX_RATE = 1e6
"""The highest rate, in starts per second: far above what Postgres can claim. A higher rate would limit nothing."""

_MIN_RATE = 1e-7
"""The lowest rate, in starts per second: one in 115 days. A start time further ahead is likely a mistake."""

_MAX_CONCURRENCY = 10_000
"""The most attempts at once: more than a Postgres server has connections."""

_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_RATE = re.compile(r"(\d+(?:\.\d+)?) ?/ ?(second|minute|hour|day)")

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a stage, and where in the data its partition and its priority are. Rates are per second."""

    concurrency: int | None = None
    rate: float | None = None
    partition_concurrency: int | None = None
    partition_rate: float | None = None
    partition: Path = ()
    priority: Path = ()

    @property
    def paced(self) -> bool:
        """Tells whether attempts have start times."""
        return self.rate is not None or self.partition_rate is not None

    @property
    def crowded(self) -> bool:
        """Tells whether the end of one attempt may let another one start."""
        return self.concurrency is not None or self.partition_concurrency is not None

    def __str__(self) -> str:
        of_all = _words(self.concurrency, self.rate, "")
        of_each = _words(self.partition_concurrency, self.partition_rate, f" for each {'.'.join(self.partition)}")
        ordered = [f"in turn by {'.'.join(self.partition)}"] if self.partition and not of_each else []
        ordered += [f"the highest {'.'.join(self.priority)} first"] if self.priority else []
        return ", ".join([*of_all, *of_each, *ordered])


def _words(concurrency: int | None, rate: float | None, whose: str) -> list[str]:
    at_once = [f"{concurrency} at once{whose}"] if concurrency is not None else []
    return at_once + ([f"{rate:g} a second{whose}"] if rate is not None else [])


def check(
    stage: str,
    concurrency: int | None,
    rate: str | None,
    partition: Callable[[Any], Any] | str | None,
    priority: Callable[[Any], Any] | str | None,
    total_concurrency: int | None,
    total_rate: str | None,
) -> Limits | None:
    """Returns the limits of a stage. None if it has none.

    Raises DefinitionError for numbers out of range, rates that can't be read, and paths that don't lead into the data.
    """
    for what, value in (("concurrency", concurrency), ("total_concurrency", total_concurrency)):
        if value is not None:
            check_whole(value, f"stage {stage}: {what}=", _MAX_CONCURRENCY)
    rates = _per_second(stage, "rate", rate), _per_second(stage, "total_rate", total_rate)
    if partition is None:
        if total_concurrency is not None or total_rate is not None:
            raise DefinitionError(f"stage {stage}: total_concurrency and total_rate are for stages with partition=")
        limits = Limits(concurrency, rates[0])
    else:
        limits = Limits(total_concurrency, rates[1], concurrency, rates[0], _path(stage, "partition", partition))
    limits = replace(limits, priority=_path(stage, "priority", priority))
    return None if limits == Limits() else limits


def _per_second(stage: str, what: str, rate: object) -> float | None:
    if rate is None:
        return None
    match = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    if match is None:
        raise DefinitionError(
            f'stage {stage}: {what}={shown(rate)} is not a rate, such as "14/second", "100/minute" or "3/day"'
        )
    per_second = float(match[1]) / _SECONDS[match[2]]
    if per_second == 0:
        raise DefinitionError(f"stage {stage}: {what}={shown(rate)} lets nothing start; `outbox pause` stops a stage")
    if not _MIN_RATE <= per_second <= _MAX_RATE:
        raise DefinitionError(
            f"stage {stage}: {what}={shown(rate)} is not between one in 115 days and a million a second"
        )
    return per_second


def _path(stage: str, what: str, where: Callable[[Any], Any] | str | None) -> Path:
    """Returns the path into the data that a name ("customer", "customer.id") or a function of the data describes."""
    if where is None:
        return ()
    if isinstance(where, str):
        path: object = _Step(tuple(where.split(".")))
    else:
        try:
            path = where(_Step(()))
        except Exception:
            path = None
    if not isinstance(path, _Step) or not path._taken or not all(path._taken) or "\x00" in "".join(path._taken):
        raise DefinitionError(
            f"stage {stage}: {what}={shown(where)} must lead to a field of the data and do no more, such as "
            f"lambda d: d.customer.id: the database follows it for all who write the data"
        )
    return path._taken


class _Step:
    """A stand-in for the data that records the path which a function takes into it."""

    __slots__ = ("_taken",)

    def __init__(self, taken: Path) -> None:
        self._taken = taken

    def __getattr__(self, name: str) -> _Step:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Step((*self._taken, name))

    def __getitem__(self, key: object) -> _Step:
        if not isinstance(key, str | int):
            raise TypeError("a key of the data is a name or a number")
        return _Step((*self._taken, str(key)))

    def __bool__(self) -> bool:
        raise TypeError("the data is not there yet")

    __iter__ = None
