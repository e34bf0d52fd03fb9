"""Defines a question to people: what is asked, which answers there are, and who may give them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from ... import documents, texts
from ...checks import MAX_NAME, MAX_QUESTION
from ...errors import InvalidInput
from ...texts import shown
from .times import check_time, seconds

MOST_GROUPS = 8
"""Groups that one question may ask. A vote looks at each selection of them: 255."""

MOST_VOTES = 1_000
"""Members of a group that one question may ask."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question to people, one of several that a workflow waits for: `WaitForApproval(questions=[…])`.

    `options` maps each answer to the status that it leads to.

    `about` is what is asked about, as JSON; by default it is the workflow's data. With `edits_allowed=False`, an answer
    can't change that.

    `approvers` maps groups to the number of their members who must agree: `{"finance": 2}`. Then each answer is a vote.
    A group is a database role, or a name that the application gives with the vote. A person counts once, and for one
    group. For the answers in `alone`, one approver is enough.

    `asked_by` is the person who asks, and whose vote never counts. By default, it is who started the workflow.

    `assignee` is who is asked. After `escalate_after`, `escalate_to` is; the message of it has the topic
    `PIPELINE.approval.escalated`. `remind_every` publishes a message with the topic `PIPELINE.approval.reminder`, at
    most once a second. `name` distinguishes the questions of a workflow for the code that reads their answers.

    Raises InvalidInput if a value can't be stored.
    """

    question: str
    options: Mapping[str, str] = field(
        default_factory=lambda: {"approve": "APPROVED", "reject": "REJECTED"}, kw_only=True
    )
    about: Any = field(default=None, kw_only=True)
    edits_allowed: bool = field(default=True, kw_only=True)
    approvers: Mapping[str, int] | None = field(default=None, kw_only=True)
    alone: Collection[str] = field(default=(), kw_only=True)
    asked_by: str | None = field(default=None, kw_only=True)
    assignee: str | None = field(default=None, kw_only=True)
    escalate_after: timedelta | None = field(default=None, kw_only=True)
    escalate_to: str | None = field(default=None, kw_only=True)
    remind_every: timedelta | None = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        texts.check_text(self.question, "question", MAX_QUESTION)
        for what, text in (("assignee", self.assignee), ("asked_by", self.asked_by), ("name", self.name)):
            texts.check_optional(text, what, MAX_NAME)
        if self.name is not None and _is_id(self.name):
            raise InvalidInput("name", f"{shown(self.name)} looks like an id")
        self._check_options()
        self._check_approvers()
        if self.about is not None:
            documents.dump_any(self.about, "about")
        if self.remind_every is not None:
            check_time("remind_every", self.remind_every, timedelta(seconds=1))
        if (self.escalate_after is None) != (self.escalate_to is None):
            raise InvalidInput("escalate_to", "escalate_after and escalate_to go together")
        if self.escalate_after is not None:
            check_time("escalate_after", self.escalate_after, timedelta(0))
            texts.check_text(self.escalate_to, "escalate_to", MAX_NAME)

    def _check_options(self) -> None:
        if not isinstance(self.options, Mapping) or not self.options:
            raise InvalidInput("options", f"must be answers with their statuses, not {shown(self.options)}")
        for option, status in self.options.items():
            texts.check_text(option, "option", MAX_NAME)
            texts.check_text(status, f"option {shown(option)}", MAX_NAME)
            if option.startswith("("):
                raise InvalidInput("option", f"{shown(option)} begins with a parenthesis, as only the engine's own do")

    def _check_approvers(self) -> None:
        check_answers("alone", self.alone, self.options)
        if self.approvers is None:
            if self.alone:
                raise InvalidInput("alone", "is for questions with approvers")
            return
        check_approvers(self.approvers)

    def as_question(self) -> dict[str, Any]:
        """Returns the question as JSON for the database."""
        about = None if self.about is None else json.loads(documents.dump_any(self.about, "about"))
        return {
            "name": self.name,
            "question": self.question,
            "about": about,
            "options": dict(self.options),
            "edits": self.edits_allowed,
            "assignee": self.assignee,
            "asked_by": self.asked_by,
            "approvers": None if self.approvers is None else dict(self.approvers),
            "alone": sorted(self.alone),
            "remind": seconds(self.remind_every),
            "escalate_after": seconds(self.escalate_after),
            "escalate_to": self.escalate_to,
        }


def check_answers(what: str, answers: Collection[str], options: Collection[str]) -> None:
    """Raises InvalidInput, which names `what`, unless `answers` are some of the options."""
    if isinstance(answers, str) or not isinstance(answers, Collection):
        raise InvalidInput(what, f"must be answers, not {shown(answers)}")
    if unknown := [answer for answer in answers if answer not in options]:
        raise InvalidInput(what, f"{shown(unknown[0])} is not one of the options")


def check_approvers(approvers: object) -> None:
    """Raises InvalidInput unless these are groups, each with the number of its members who must agree."""
    if not isinstance(approvers, Mapping) or not 1 <= len(approvers) <= MOST_GROUPS:
        raise InvalidInput("approvers", f"must be 1 to {MOST_GROUPS} groups with a number, not {shown(approvers)}")
    for group, number in approvers.items():
        texts.check_text(group, "approvers", MAX_NAME)
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_VOTES:
            raise InvalidInput("approvers", f"{shown(group)}: {shown(number)} is not a number from 1 to {MOST_VOTES:,}")


def _is_id(name: str) -> bool:
    try:
        UUID(name)
    except ValueError:
        return False
    return True
