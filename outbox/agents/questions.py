"""Asks a person about a tool call that an agent may not make by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..checks import MAX_QUESTION
from ..definition.waits.question import Question
from ..errors import DefinitionError
from .decisions import AGAIN, ToolCall, name_of

_SHOWN = 1_000
"""How many characters of a problem a question shows."""

_OWN = ("name", "options", "about")
"""The parameters of a question by which its answer is read."""


def question(
    agent: str, call: ToolCall, about: Any, *, options: Iterable[str], answered: str, given: Mapping[str, Any],
    again: bool, problem: str | None,
) -> Question:  # fmt: skip
    """Returns the question about a call. All answers lead to the status `answered`.

    `given` are further parameters, of the application. `again`: it is asked before the agent has gone on. `problem`
    says what doesn't fit in the arguments that a person has given before. Raises DefinitionError if `given` has one by
    which the answer is read.
    """
    text = given.get("question", f"{agent}: {call.tool_name}")
    if problem:
        text = f"{text}\nThe arguments given before don't fit: {problem[:_SHOWN]}"[:MAX_QUESTION]
    if refused := next((name for name in _OWN if name in given), None):
        raise DefinitionError(f"agent {agent}: ask= can't give {refused}: the answer is read by it")
    return Question(
        **{**given, "question": text},
        name=name_of(call) + (AGAIN if again else ""),
        options=dict.fromkeys(options, answered),
        about=about,
    )
