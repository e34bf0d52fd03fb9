"""What a handler may wait for besides a worker: a person, a signal, children. Its outcome instead of data or `Go`.

A wait is a status that no stage takes. What ends it changes the status, in the same transaction, whoever it is: a
decision, a signal, a deadline, or a person who sets the status by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from .. import texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..errors import InvalidInput
from ..texts import shown

Data = TypeVar("Data")

LONGEST = timedelta(days=36_500)

Wait = dict[str, Any]
"""What the database is told of a wait: see `waits_begin` in sql/functions/waits.sql."""


@dataclass(frozen=True, slots=True)
class WaitForApproval(Generic[Data]):
    """A handler's outcome: ask a person, and wait in `status` (default: the stage's only next one) for the answer.

    `options` maps each answer to the status that it leads to, by changes that the pipeline allows. The question is
    about the workflow's data; `data`, if given, becomes that. A decision on data that was changed since is refused.
    After `deadline` the workflow moves to `on_deadline`, undecided. Until then a message, `PIPELINE.approval.reminder`,
    goes out each `remind_every`. InvalidInput if it can't be stored.
    """

    question: str
    data: Data | None = None
    options: Mapping[str, str] = field(default_factory=lambda: {"approve": "APPROVED", "reject": "REJECTED"})
    assignee: str | None = None
    deadline: timedelta | None = None
    on_deadline: str | None = None
    remind_every: timedelta | None = None
    status: str | None = None

    def __post_init__(self) -> None:
        texts.check_text(self.question, "question", MAX_QUESTION)
        if self.assignee is not None:
            texts.check_text(self.assignee, "assignee", MAX_NAME)
        if not isinstance(self.options, Mapping) or not self.options:
            raise InvalidInput("options", f"must be answers with their statuses, not {shown(self.options)}")
        for option, status in self.options.items():
            texts.check_text(option, "option", MAX_NAME)
            texts.check_text(status, f"option {shown(option)}", MAX_NAME)
            if option.startswith("("):
                raise InvalidInput("option", f"{shown(option)} begins with a parenthesis, as only the engine's own do")
        _check_timeout("deadline", self.deadline, "on_deadline", self.on_deadline)
        if self.remind_every is not None:
            check_time("remind_every", self.remind_every, timedelta(seconds=1))

    @property
    def leads_to(self) -> list[str]:
        """The statuses that end this wait."""
        return [*self.options.values(), *([self.on_deadline] if self.on_deadline else [])]

    def as_wait(self) -> Wait:
        return {
            "question": self.question,
            "options": dict(self.options),
            "assignee": self.assignee,
            "within": seconds(self.deadline),
            "on_deadline": self.on_deadline,
            "remind": seconds(self.remind_every),
        }


@dataclass(frozen=True, slots=True)
class WaitForSignal(Generic[Data]):
    """A handler's outcome: wait in `status` (default: the stage's only next one) for the signal `name`.

    The signal moves the workflow to `to`; one that came before is taken at once. Its payload is kept in the field
    `into` of the workflow's data, if one is named. After `timeout` the workflow moves to `on_timeout` instead. `data`,
    if given, becomes the workflow's data. InvalidInput if it can't be stored.
    """

    name: str
    to: str
    timeout: timedelta | None = None
    on_timeout: str | None = None
    into: str | None = None
    data: Data | None = None
    status: str | None = None

    def __post_init__(self) -> None:
        texts.check_text(self.name, "name", MAX_NAME)
        if self.into is not None:
            texts.check_text(self.into, "into", MAX_NAME)
        _check_timeout("timeout", self.timeout, "on_timeout", self.on_timeout)

    @property
    def leads_to(self) -> list[str]:
        """The statuses that end this wait."""
        return [self.to, *([self.on_timeout] if self.on_timeout else [])]

    def as_wait(self) -> Wait:
        return {
            "signal": self.name,
            "to_status": self.to,
            "field": self.into,
            "within": seconds(self.timeout),
            "on_deadline": self.on_timeout,
        }


@dataclass(frozen=True, slots=True)
class WaitForChildren(Generic[Data]):
    """A handler's outcome: wait in `status` (default: the stage's only next one) until all children have ended.

    Children are what `run.spawn` has started, in this stage or before. The commit of the last one moves the workflow to
    `to`; or to `on_failure`, if a child has ended in a status of `failed`. A child whose job is dead has not ended: a
    person has it. After `timeout` the workflow moves to `on_timeout` instead. `data`, if given, becomes the workflow's
    data. InvalidInput if it can't be stored.
    """

    to: str
    on_failure: str | None = None
    failed: Iterable[str] = ()
    timeout: timedelta | None = None
    on_timeout: str | None = None
    data: Data | None = None
    status: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.failed, str) or not isinstance(self.failed, Iterable):
            raise InvalidInput("failed", f"must be statuses, not {shown(self.failed)}")
        object.__setattr__(self, "failed", sorted(texts.check_text(each, "failed", MAX_NAME) for each in self.failed))
        if (self.on_failure is None) != (not self.failed):
            raise InvalidInput("failed", "failed and on_failure go together: which statuses of a child mean failure")
        _check_timeout("timeout", self.timeout, "on_timeout", self.on_timeout)

    @property
    def leads_to(self) -> list[str]:
        """The statuses that end this wait."""
        return [self.to, *(status for status in (self.on_failure, self.on_timeout) if status)]

    def as_wait(self) -> Wait:
        return {
            "join": True,
            "to_status": self.to,
            "failed": self.failed,
            "on_failure": self.on_failure,
            "within": seconds(self.timeout),
            "on_deadline": self.on_timeout,
        }


def later(after: timedelta | None, at: datetime | None) -> Wait | None:
    """Return what puts a job off: by so much from now, or until a moment; None: nothing does."""
    if after is None and at is None:
        return None
    return {"after": seconds(after), "at": None if at is None else at.isoformat()}


def check_later(after: object, at: object) -> None:
    """Raise InvalidInput unless a job can be put off so."""
    if after is not None and at is not None:
        raise InvalidInput("at", "say either after= or at=")
    if after is not None:
        check_time("after", after, timedelta(0))
    if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
        raise InvalidInput("at", f"must be a datetime with a time zone, not {shown(at)}")


def check_time(what: str, value: object, least: timedelta) -> None:
    """Raise InvalidInput unless it is a timedelta from `least` to a hundred years."""
    if not isinstance(value, timedelta) or not least <= value <= LONGEST:
        raise InvalidInput(what, f"must be a timedelta from {least} to a hundred years, not {shown(value)}")


def seconds(value: timedelta | None) -> float | None:
    return None if value is None else value.total_seconds()


def _check_timeout(what: str, value: object, where: str, status: str | None) -> None:
    if (value is None) != (status is None):
        raise InvalidInput(where if status is None else what, f"{what} and {where} go together")
    if value is not None:
        check_time(what, value, timedelta(0))
        texts.check_text(status, where, MAX_NAME)
