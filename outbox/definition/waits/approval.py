"""Defines the wait for people's answers to one question, or to several."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from datetime import timedelta
from typing import Any, TypeVar

from ...errors import InvalidInput
from ...texts import shown
from .question import Question, check_answers
from .times import check_timeout, seconds
from .wait import Wait, WaitJson

Data = TypeVar("Data")

MOST_QUESTIONS = 100
"""Questions that one wait may ask. A person has to read them all."""


@dataclass(frozen=True, slots=True)
class WaitForApproval(Question, Wait[Data]):
    """Returned by a handler: asks people, and waits in `status` for their answers.

    It asks one question, with the parameters of `Question`, or several: `questions=[Question(…), …]`. Each answer leads
    to a status that is a legal change from `status`, which by default is the only next status of the stage. Questions
    are about the workflow's data, which `data` replaces if it is given. An answer is refused if the data has changed
    since the question was asked.

    Of several questions, the last one that is answered moves the workflow. An answer in `first` moves it at once, and
    withdraws the other questions; `first=True` stands for any answer.

    `deadline` is a timedelta. After it, the workflow moves to `on_deadline`, whatever is still open.

    Raises InvalidInput if a value can't be stored.
    """

    question: str = ""
    data: Data | None = None
    questions: Sequence[Question] = field(default=(), kw_only=True)
    first: bool | Collection[str] = field(default=(), kw_only=True)
    deadline: timedelta | None = field(default=None, kw_only=True)
    on_deadline: str | None = field(default=None, kw_only=True)
    status: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_timeout("deadline", self.deadline, "on_deadline", self.on_deadline)
        if self.questions:
            self._check_questions()
        else:
            Question.__post_init__(self)
        if not isinstance(self.first, bool):
            check_answers("first", self.first, {option for asked in self.asked for option in asked.options})

    def _check_questions(self) -> None:
        if not isinstance(self.questions, Sequence):
            raise InvalidInput("questions", f"must be Questions, not {shown(self.questions)}")
        if len(self.questions) > MOST_QUESTIONS:
            raise InvalidInput("questions", f"are {len(self.questions)}; the limit is {MOST_QUESTIONS}")
        for asked in self.questions:
            if type(asked) is not Question:
                raise InvalidInput("questions", f"must be Questions, not {shown(asked)}")
        names = [asked.name for asked in self.questions if asked.name is not None]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InvalidInput("questions", f"two have the name {shown(twice)}")
        for own in fields(Question):
            if getattr(self, own.name) != ("" if own.name == "question" else _default(own)):
                raise InvalidInput(own.name, "belongs to each of the questions")

    @property
    def asked(self) -> Sequence[Question]:
        """The questions, at least one."""
        return self.questions or [self]

    @property
    def leads_to(self) -> list[str]:
        """The statuses to which the answers and the deadline lead."""
        answers = dict.fromkeys(status for asked in self.asked for status in asked.options.values())
        return [*answers, *([self.on_deadline] if self.on_deadline else [])]

    def as_wait(self) -> WaitJson:
        """Returns the wait as JSON for the database."""
        return {
            "questions": [
                {**asked.as_question(), "ends_wait": [option for option in asked.options if self._ends_wait(option)]}
                for asked in self.asked
            ],
            "within": seconds(self.deadline),
            "on_deadline": self.on_deadline,
        }

    def _ends_wait(self, option: str) -> bool:
        return self.first if isinstance(self.first, bool) else option in self.first


def _default(own: Field[Any]) -> Any:
    """Returns the default of a dataclass's field."""
    return own.default if own.default_factory is MISSING else own.default_factory()
