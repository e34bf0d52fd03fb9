"""Asks people, or waits for signals, what a graph's interrupts ask, and reads the answers.

Only rows of the database answer a question, never the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from langgraph.types import Interrupt

from ... import texts
from ...checks import MAX_QUESTION
from ...definition.run import Answer, Run
from ...definition.waits.approval import MOST_QUESTIONS
from ...definition.waits.question import Question
from ...definition.waits.signal import WaitForSignal
from ...errors import InvalidInput
from .errors import InterruptRefused

Ask = Callable[[Any], Mapping[str, Any]]
"""Says how an interrupt's value is asked: parameters of a `Question`, or `signal` and `timeout`."""

Resume = Callable[[Any, Answer], Any]
"""Makes what `interrupt()` returns from its value and the answer to it."""

OPTIONS = ("approve", "reject")
"""The answers to a question that names none."""

_PARAMETERS = frozenset(field.name for field in dataclasses.fields(Question)) - {"name"}

_SHOWN = 1_000
"""How many characters of a problem a question shows."""


def as_asked(value: Any) -> Mapping[str, Any]:
    """Says how an interrupt is asked, unless `ask=` says it: a text as a question, a dict by its keys."""
    if isinstance(value, Mapping) and ("question" in value or "signal" in value):
        return value
    if isinstance(value, str) and 0 < len(value) <= MAX_QUESTION:
        return {"question": value}
    return {"question": "How shall the graph go on?", "about": value}


def as_resumed(value: Any, answer: Answer) -> Any:
    """Makes what `interrupt()` returns, unless `resume=` makes it."""
    return {
        "decision": answer.decision, "by": answer.by, "reason": answer.reason, "about": answer.about,
        "ended": answer.ended,
    }  # fmt: skip


class Interrupts:
    """Turns the interrupts of one stage's graph into waits."""

    def __init__(self, ask: Ask, resume: Resume, answered: str) -> None:
        self._ask = ask
        self._resume = resume
        self._answered = answered

    def signal(self, interrupts: Iterable[Interrupt]) -> tuple[Interrupt, str, timedelta | None] | None:
        """Returns the first interrupt that waits for a signal, the signal's name, and its own timeout."""
        for each in interrupts:
            given = self._described(each)
            if "signal" in given:
                if unknown := sorted(given.keys() - {"signal", "timeout"}):
                    raise InterruptRefused(f"an interrupt for a signal has no parameter {unknown[0]}")
                return each, given["signal"], given.get("timeout")
        return None

    def wait_for_signal(self, name: str, timeout: timedelta | None, into: str, status: str, data: Any) -> Any:
        """Returns the wait for the signal that an interrupt names."""
        try:
            return WaitForSignal(
                name, self._answered, timeout, None if timeout is None else self._answered, into, data, status
            )
        except (InvalidInput, TypeError) as error:
            raise InterruptRefused(f"an interrupt waits for the signal {texts.shown(name)}: {error}") from error

    def questions(self, interrupts: Sequence[Interrupt], wrong: str | None = None) -> list[Question]:
        """Returns the questions of those interrupts that ask people. All answers lead to one status.

        `wrong` says what doesn't fit in the answers before.
        """
        asked = []
        for each in interrupts:
            given = dict(self._described(each))
            if "signal" in given:
                continue
            if unknown := sorted(given.keys() - _PARAMETERS):
                raise InterruptRefused(f"a question has no parameter {unknown[0]}; a graph's interrupt gives it")
            options = given.get("options", OPTIONS)
            if isinstance(options, str | Mapping):  # each letter, or each key, would be one
                raise InterruptRefused(f"options of an interrupt are a list of answers, not {texts.shown(options)}")
            try:
                if wrong is not None:
                    text = f"{given['question']}\nThe answer before doesn't fit: {wrong[:_SHOWN]}"
                    given["question"] = text[:MAX_QUESTION]
                given["options"] = dict.fromkeys(options, self._answered)
                asked.append(Question(**given, name=_name(each)))
            except (InvalidInput, TypeError) as error:
                raise InterruptRefused(f"what an interrupt asks can't be asked: {error}") from error
        return asked[:MOST_QUESTIONS]

    async def answers(self, run: Run[Any], interrupts: Iterable[Interrupt]) -> dict[str, Any]:
        """Returns what those interrupts return that people have been asked about in the wait before, by their ids."""
        found = {answer.name: answer for answer in await run._answers(0)}
        return {
            each.id: self._resume(each.value, found[_name(each)])
            for each in interrupts
            if _name(each) in found and "signal" not in self._described(each)
        }

    def _described(self, interrupt: Interrupt) -> Mapping[str, Any]:
        given = self._ask(interrupt.value)
        if not isinstance(given, Mapping):
            raise InterruptRefused(f"ask= must return parameters of a question, not {texts.shown(given)}")
        return given


def _name(interrupt: Interrupt) -> str:
    """Returns the name of the question of an interrupt. Its id alone would look like that of a question."""
    return f"interrupt {interrupt.id}"
