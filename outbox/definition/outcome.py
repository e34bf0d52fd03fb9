"""What a handler may say of an attempt: go there, try again later, give up; and how long a stage waits by itself."""

from __future__ import annotations

import math
import random
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, NamedTuple, TypeVar

from ..checks import check_number, check_whole, is_wait
from ..errors import InvalidInput
from ..texts import clean, describe, shown
from .waits import check_later

Data = TypeVar("Data")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits `first * factor**n` seconds before attempt n+2, at most `max`, for `attempts` attempts in all.

    Up to `jitter` of each wait (a fraction, 0 to 1) is taken off at random, so that jobs which failed together
    don't come back together.
    """

    first: float = 1.0
    factor: float = 2.0
    max: float = 300.0
    attempts: int = 8
    jitter: float = 0.2

    def __post_init__(self) -> None:
        for name, low, high in (("first", 0, 1e8), ("factor", 1, 1e3), ("max", 0, 1e8), ("jitter", 0, 1)):
            check_number(getattr(self, name), f"Backoff {name}", low, high)
        check_whole(self.attempts, "Backoff attempts: ", 10_000)

    def delay(self, attempt: int) -> float | None:
        """Return the seconds to wait after `attempt` (1 is the first) has failed; None when it was the last."""
        if attempt >= self.attempts:
            return None
        # In logarithms: factor**10_000 overflows a float.
        grown = math.log(self.first) + (attempt - 1) * math.log(self.factor) if self.first else -math.inf
        wait = self.max if grown > math.log(1e9) else min(self.max, math.exp(grown))
        return wait * (1 - self.jitter * random.random())


@dataclass(frozen=True, slots=True)
class Go(Generic[Data]):
    """A handler's outcome that names the next status, and optionally new data.

    `after` or `at` puts the job of the next stage off: for so long by the database's clock, or until that moment.
    """

    status: str
    data: Data | None = None
    after: timedelta | None = None
    at: datetime | None = None

    def __post_init__(self) -> None:
        if self.after is not None or self.at is not None:
            check_later(self.after, self.at)


class Retry(Exception):
    """Raised by a handler: try again, `after` seconds from now (default: by the stage's back-off).

    It counts as an attempt. A message, if given, is kept as the job's error.
    """

    after: float | None = None  # of the class, too: a subclass may leave out our __init__

    def __init__(self, after: float | None = None, message: str = "") -> None:
        if after is not None and not is_wait(after):
            raise InvalidInput("after", f"{shown(after)} is not a number of seconds from 0 to 1e9")
        super().__init__(message or ("retry" if after is None else f"retry after {after:g} s"))
        self.after = after


class Reject(Exception):
    """Raised by a handler: give up at once. The job is dead with this reason and waits for a person."""

    def __init__(self, reason: str = "rejected") -> None:
        super().__init__(reason)


class Failure(NamedTuple):
    """What an exception of a user's function means: `error` is text that Postgres stores, `delay` seconds or None.

    None: the function is not called again.
    """

    error: str
    delay: float | None


def failure(error: BaseException, retry: Backoff, attempt: int) -> Failure:
    """Returns what follows from the exception that `attempt` (1 is the first) has raised: for jobs and deliveries."""
    delay = retry.delay(attempt)
    if isinstance(error, Reject):
        delay = None
    elif isinstance(error, Retry) and delay is not None and is_wait(error.after):
        delay = error.after  # checked again: it may have been changed after the exception was made
    return Failure(_words(error), delay)


def _words(error: BaseException) -> str:
    """Returns the message of a Reject or Retry, which is meant for people; else type, message and place."""
    if isinstance(error, Reject | Retry):
        with suppress(BaseException):
            return clean(str(error))
    return describe(error)
