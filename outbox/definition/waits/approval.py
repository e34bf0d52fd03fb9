"""Defines the wait for a person's answer to a question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Generic, TypeVar

from ... import texts
from ...checks import MAX_NAME, MAX_QUESTION
from ...errors import InvalidInput
from ...texts import shown
from .times import check_time, check_timeout, seconds
from .wait import Wait, WaitJson

Data = TypeVar("Data")


@dataclass(frozen=True, slots=True)
class WaitForApproval(Wait, Generic[Data]):
    """Returned by a handler: asks a person, and waits in `status` for the answer.

    `options` maps each answer to the status that it leads to. Each must be a legal change from `status`, which by
    default is the only next status of the stage. The question is about the workflow's data, which `data` replaces if it
    is given. A decision is refused if the data has changed since the question was asked.

    `deadline` and `remind_every` are timedeltas. After `deadline` without an answer, the workflow moves to
    `on_deadline`. Until then, a message with the topic `PIPELINE.approval.reminder` is published every `remind_every`,
    which is at least a second.

    Raises InvalidInput if a value can't be stored.
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
        check_timeout("deadline", self.deadline, "on_deadline", self.on_deadline)
        if self.remind_every is not None:
            check_time("remind_every", self.remind_every, timedelta(seconds=1))

    @property
    def leads_to(self) -> list[str]:
        """The statuses to which the answers and the deadline lead."""
        return [*self.options.values(), *([self.on_deadline] if self.on_deadline else [])]

    def as_wait(self) -> WaitJson:
        """Returns the wait as JSON for the database."""
        return {
            "question": self.question,
            "options": dict(self.options),
            "assignee": self.assignee,
            "within": seconds(self.deadline),
            "on_deadline": self.on_deadline,
            "remind": seconds(self.remind_every),
        }
