"""Defines cron schedules. Each tick runs once, on the first worker to take it.

The schedule's row is locked while its function runs, and moves on in the function's own transaction. So a tick that
was rolled back is due again, a tick that was committed is over, and no tick runs twice at the same time. cronsim reads
the expressions; at a change to or from daylight saving time it does what Debian's cron does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psycopg
from cronsim import CronSim, CronSimError
from psycopg.rows import TupleRow

from .. import texts
from ..checks import check_name, check_seconds
from ..errors import DefinitionError
from .hooks import NO_HOOKS, Hooks
from .lifespan import HasResources
from .step_transaction import StepTransaction

_MIN_TIMEOUT, _MAX_TIMEOUT = 0.001, 86_400
"""The range of a tick's timeout, in seconds. A tick holds a transaction open, which should never last a day."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A function and the times at which it runs. `Pipeline.every` makes it. `timeout` is in seconds."""

    pipeline: str
    name: str
    cron: str
    timezone: str
    catch_up: bool
    timeout: float
    function: Callable[..., Any] = field(repr=False)
    hooks: Hooks = field(repr=False, default=NO_HOOKS)

    @property
    def label(self) -> str:
        """The schedule's name in logs: `shop.nightly`."""
        return f"{self.pipeline}.{self.name}"

    @property
    def how(self) -> tuple[str, str, bool]:
        """What the database stores of it: the cron expression, the time zone, and whether it catches up."""
        return self.cron, self.timezone, self.catch_up

    def after(self, moment: datetime) -> datetime:
        """Returns the first tick after a time."""
        return next(CronSim(self.cron, moment.astimezone(ZoneInfo(self.timezone))))

    def tick(self, due: datetime, now: datetime) -> datetime:
        """Returns the tick to run: the one that is due or, if later ones were missed too, the last of them.

        A schedule that catches up always runs the one that is due.
        """
        zone = ZoneInfo(self.timezone)
        if self.catch_up or self.after(due) > now:
            return due.astimezone(zone)
        return max(due.astimezone(zone), next(CronSim(self.cron, now.astimezone(zone), reverse=True)))


@dataclass(frozen=True, slots=True)
class Tick(HasResources):
    """What a scheduled function gets. `at` is the time for which it was scheduled, in the schedule's time zone.

    `connection` is a psycopg connection. What is written through it commits with the tick, or not at all. A plain
    function gets a `SyncTick`. `idempotency_key` is the same in every attempt at this tick: pass it to every
    system that the function calls. `resources` is what the pipeline's lifespan has made.
    """

    schedule: str
    at: datetime
    connection: psycopg.AsyncConnection[TupleRow]
    _transaction: StepTransaction = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_transaction", StepTransaction(self.connection, f"schedule {self.schedule}"))

    def on_commit(self, function: Callable[[], Any]) -> None:
        """Has a function called after this tick's COMMIT, as `Run.on_commit` does."""
        self._transaction.on_commit(function)

    def _in_transaction(self) -> StepTransaction:
        return self._transaction

    @property
    def idempotency_key(self) -> str:
        return f"{self.schedule}:{self.at.isoformat()}"


@dataclass(frozen=True, slots=True)
class SyncTick(Tick):
    """A `Tick` as a plain function gets it: its connection is a sync one."""

    connection: psycopg.Connection[TupleRow]  # type: ignore[assignment]


def check(
    pipeline: str,
    name: str,
    cron: str,
    timezone: str,
    missed: str,
    timeout: float | timedelta,
    function: Callable[..., Any],
    hooks: Hooks = NO_HOOKS,
) -> Schedule:
    """Returns a checked schedule.

    Raises DefinitionError for an expression that can't be read or never fires, an unknown time zone, and other invalid
    values.
    """
    check_name(name, "schedule")
    what = f"schedule {pipeline}.{name}"
    seconds = check_seconds(timeout, f"{what}: timeout", _MIN_TIMEOUT, _MAX_TIMEOUT)
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise DefinitionError(f"{what}: timezone={texts.shown(timezone)} is unknown; say it as Europe/Paris") from None
    try:
        next(CronSim(cron, datetime.now(zone)))
    except (CronSimError, AttributeError) as error:
        raise DefinitionError(
            f"{what}: {texts.shown(cron)} is not a cron expression: {error}. It has minute, hour, day, month, weekday"
        ) from None
    except StopIteration:
        raise DefinitionError(f"{what}: {texts.shown(cron)} never comes") from None
    if missed not in ("skip", "catch up"):
        raise DefinitionError(f'{what}: missed={texts.shown(missed)} is neither "skip" nor "catch up"')
    if not callable(function):
        raise DefinitionError(f"{what}: it must be a function that takes a Tick")
    return Schedule(pipeline, name, cron, timezone, missed == "catch up", seconds, function, hooks)
