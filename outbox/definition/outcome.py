"""Defines the outcomes of an attempt (go on, try again later, give up) and a stage's own back-off."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, NamedTuple, TypeVar

from ..checks import MAX_DELAY, as_delay, check_number, check_seconds, check_whole
from ..errors import InvalidInput
from ..texts import clean, shown
from .reasons import describe, leaves
from .waits.times import check_time, seconds
from .waits.wait import Wait, WaitJson

Data = TypeVar("Data")

_MAX_WAIT = 1e8
"""The longest wait of a back-off, in seconds: three years."""

_MAX_FACTOR = 1e3
"""The largest factor of a back-off. With it, the second wait already reaches any sensible `max`."""

_MAX_ATTEMPTS = 10_000
"""The most attempts of a back-off: more than any transient error needs, and still an end."""


@dataclass(frozen=True, slots=True, init=False)
class Backoff:
    """How long to wait between attempts, and how many there are.

    Attempt n+2 comes `first * factor**n` after the end of attempt n+1, and never later than `max`. `first` and `max`
    are seconds or timedeltas, and are kept as seconds. `attempts` counts all attempts, including the first. A random
    share of each wait, up to the fraction `jitter` (0 to 1), is taken off, so that jobs that failed together don't come
    back together.

    Raises DefinitionError if a value is out of range.
    """

    first: float
    factor: float
    max: float
    attempts: int
    jitter: float

    def __init__(
        self,
        first: float | timedelta = 1.0,
        factor: float = 2.0,
        max: float | timedelta = 300.0,
        attempts: int = 8,
        jitter: float = 0.2,
    ) -> None:
        object.__setattr__(self, "first", check_seconds(first, "Backoff first", 0, _MAX_WAIT))
        object.__setattr__(self, "max", check_seconds(max, "Backoff max", 0, _MAX_WAIT))
        check_number(factor, "Backoff factor", 1, _MAX_FACTOR)
        check_number(jitter, "Backoff jitter", 0, 1)
        check_whole(attempts, "Backoff attempts: ", _MAX_ATTEMPTS)
        for name, value in (("factor", factor), ("attempts", attempts), ("jitter", jitter)):
            object.__setattr__(self, name, value)

    def delay(self, attempt: int) -> float | None:
        """Returns the seconds to wait after `attempt` has failed; 1 is the first. None if it was the last."""
        if attempt >= self.attempts:
            return None
        # In logarithms, because factor**10_000 overflows a float.
        grown = math.log(self.first) + (attempt - 1) * math.log(self.factor) if self.first else -math.inf
        wait = self.max if grown > math.log(1e9) else min(self.max, math.exp(grown))
        return wait * (1 - self.jitter * random.random())


@dataclass(frozen=True, slots=True)
class Go(Wait[Data]):
    """Returned by a handler: names the next status, and optionally new data.

    `after`, a timedelta, or `at`, a datetime with a time zone, delays the job of the stage that takes the next status.
    Both count by the database's clock.

    Raises InvalidInput if both are given, or if `after` is negative or longer than a hundred years.
    """

    delays_a_stage: ClassVar[bool] = True

    status: str
    data: Data | None = None
    after: timedelta | None = None
    at: datetime | None = None

    def __post_init__(self) -> None:
        if self.after is not None and self.at is not None:
            raise InvalidInput("at", "say either after= or at=")
        if self.after is not None:
            check_time("after", self.after, timedelta(0))
        if self.at is not None and (not isinstance(self.at, datetime) or self.at.tzinfo is None):
            raise InvalidInput("at", f"must be a datetime with a time zone, not {shown(self.at)}")

    @property
    def leads_to(self) -> tuple[str, ...]:
        """No status: when the time comes, the stage's job is due."""
        return ()

    def as_wait(self) -> WaitJson | None:
        """Returns the wait as JSON for the database. None if the job isn't delayed."""
        if self.after is None and self.at is None:
            return None
        return {"after": seconds(self.after), "at": None if self.at is None else self.at.isoformat()}


class Retry(Exception):
    """Raised by a handler: the attempt has failed; try again `after` a time, given in seconds or as a timedelta.

    Without `after`, the stage's back-off sets the delay. The attempt counts: after the last one the job is dead.
    `message`, if given, is kept as the job's error.

    Raises InvalidInput if `after` is negative or longer than 1e9 seconds.
    """

    after: float | timedelta | None = None  # also on the class, because a subclass may not call our __init__

    def __init__(self, after: float | timedelta | None = None, message: str = "") -> None:
        seconds = as_delay(after)
        if after is not None and seconds is None:
            raise InvalidInput("after", f"{shown(after)} is not a time from 0 to {MAX_DELAY:g} seconds")
        super().__init__(message or ("retry" if seconds is None else f"retry after {seconds:g} s"))
        self.after = seconds


class Reject(Exception):
    """Raised by a handler: gives up at once. The job is dead with this reason, and waits for a person."""

    def __init__(self, reason: str = "rejected") -> None:
        super().__init__(reason)


class Failure(NamedTuple):
    """What an exception of a user's function means. `error` is text that Postgres can store, `delay` is in seconds.

    A `delay` of None means that the function is not called again.
    """

    error: str
    delay: float | None


def failure(error: BaseException, retry: Backoff, attempt: int) -> Failure:
    """Returns what follows from the exception that `attempt` (1 is the first) of a job or a delivery has raised."""
    parts = leaves(error)  # an exception from a task of a TaskGroup counts as if the handler had raised it
    rejected = [each for each in parts if isinstance(each, Reject)]
    put_off = [each for each in parts if isinstance(each, Retry)]
    delay = retry.delay(attempt)
    if rejected:
        delay = None
    elif put_off and delay is not None:
        # Checked again, because `after` may have been changed since the exception was made.
        said = [after for each in put_off if (after := as_delay(each.after)) is not None]
        delay = max(said, default=delay)
    return Failure(_words(error, [*rejected, *put_off]), delay)


def _words(error: BaseException, meant: Sequence[BaseException]) -> str:
    """Returns the messages of the Reject or Retry exceptions `meant`, then a description of any others in a group."""
    words: list[str] = []
    for each in meant:
        with suppress(BaseException):
            words.append(clean(str(each)))
    if len(leaves(error)) > len(words):
        words.append(describe(error))
    return clean("; ".join(words))
