"""Flow control: how much of a stage is at work at once and begins a second, over all workers, and what comes first.

It is data that `outbox deploy` writes, and the database keeps to it in the claim: see `jobs_claim_limited` in
sql/functions/limits.sql. Here is what a definition says, and the clock that tells a worker when to begin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..checks import check_whole
from ..errors import DefinitionError
from ..texts import shown

_MOST_PER_SECOND = 1e6
_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_RATE = re.compile(r"(\d+(?:\.\d+)?) ?/ ?(second|minute|hour|day)")

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a stage is limited to, rates per second; and where in the data its partition and its priority are."""

    concurrency: int | None = None
    rate: float | None = None
    partition_concurrency: int | None = None
    partition_rate: float | None = None
    partition: Path = ()
    priority: Path = ()

    @property
    def paced(self) -> bool:
        """Whether attempts have their moments."""
        return self.rate is not None or self.partition_rate is not None

    @property
    def crowded(self) -> bool:
        """Whether the end of one attempt may let another one begin."""
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
    """Return what a stage says of its limits; None if that is nothing. DefinitionError if it makes no sense."""
    for what, value in (("concurrency", concurrency), ("total_concurrency", total_concurrency)):
        if value is not None:
            check_whole(value, f"stage {stage}: {what}=", 10_000)
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
            f'stage {stage}: {what}={shown(rate)} is no rate, such as "14/second", "100/minute", "0.5/hour" or "3/day"'
        )
    per_second = float(match[1]) / _SECONDS[match[2]]
    if per_second == 0:
        raise DefinitionError(f"stage {stage}: {what}={shown(rate)} lets nothing begin; `outbox pause` stops a stage")
    if not 1e-7 <= per_second <= _MOST_PER_SECOND:
        raise DefinitionError(
            f"stage {stage}: {what}={shown(rate)} is not between one in 115 days and a million a second"
        )
    return per_second


def _path(stage: str, what: str, where: Callable[[Any], Any] | str | None) -> Path:
    """Return the way into the data that a name ("customer", "customer.id") or a function of the data takes."""
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
            f"lambda d: d.customer.id: the database follows it, whoever writes the data"
        )
    return path._taken


class _Step:
    """Stands for the data, and remembers which way a function takes into it."""

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
