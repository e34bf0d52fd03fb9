"""Finds the Outbox error behind a driver's error, by its SQLSTATE, with its data from the JSON in its DETAIL."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from ..errors import OutboxError, Refused, SchemaError

_CLASSES = {refusal.sqlstate: refusal for refusal in Refused.__subclasses__()}
_OURS = re.compile(r"OB\d{3}")
_MISSING = {"3F000", "42P01", "42883"}
"""SQLSTATEs of a schema, a table and a function that isn't there."""
_SCHEMA = re.compile(r"\boutbox\b")

# Fields that JSON can't express; all others are texts or numbers.
_READ: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("message_id", "question"), UUID),
    "questions": lambda ids: tuple(UUID(id) for id in ids),
    **dict.fromkeys(("options", "expected"), tuple),
    **dict.fromkeys(("at", "sent_at", "oldest", "newest"), datetime.fromisoformat),
}


def error_of(error: BaseException) -> OutboxError | None:
    """Returns the Outbox error behind the error of any driver, or None if there is none.

    When Outbox's triggers refuse a statement of yours, the driver raises a class of its own. This finds the `Refused`
    in it, with its data, behind errors of psycopg, psycopg2, asyncpg and pg8000, even if SQLAlchemy or Django has
    wrapped them. It looks through the error's causes, and through its context up to the first error of a database. An
    Outbox error is returned as it is.
    """
    found: _Answer | None = None
    for each in _chain(error):
        if isinstance(each, OutboxError):
            return each
        answer = _answer(each)
        # A wrapper of the driver's error may repeat a part of the answer. The last error in the chain has all of it.
        if answer and _OURS.fullmatch(answer.sqlstate) and (found is None or found.sqlstate == answer.sqlstate):
            found = answer
    return _refusal(found) if found else None


@contextmanager
def raised_as_ours() -> Iterator[None]:
    """Raises a driver's error from the block as the Outbox error behind it, if there is one."""
    try:
        yield
    except OutboxError:
        raise
    except Exception as error:
        # Only what the error wraps: what was being handled when it was raised is another statement's.
        answers = [answer for each in _chain(error, context=False) if (answer := _answer(each))]
        if not answers:
            raise
        if _OURS.fullmatch(answers[-1].sqlstate):
            raise _refusal(answers[-1]) from error
        if answers[-1].sqlstate in _MISSING and _SCHEMA.search(answers[-1].message):
            raise SchemaError("the schema outbox is missing or older than this code. Run: outbox migrate") from error
        raise


def sqlstate_of(error: BaseException) -> str | None:
    """Returns the SQLSTATE of any driver's error, or None if it has none."""
    return next((answer.sqlstate for each in _chain(error, context=False) if (answer := _answer(each))), None)


class _Answer(NamedTuple):
    """The server's answer, as any driver passes it on."""

    sqlstate: str
    message: str
    detail: str | None
    hint: str | None


def _chain(error: BaseException, *, context: bool = True) -> Iterator[BaseException]:
    """Yields an error and what it wraps or was raised from, nearest first; with `context`, also during which error."""
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        each = left.pop(0)
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        left += [getattr(each, "orig", None), each.__cause__]
        # A database error that was raised while another was being handled has nothing to do with that one.
        if context and not each.__suppress_context__ and _answer(each) is None:
            left.append(each.__context__)


def _answer(error: BaseException) -> _Answer | None:
    """Returns the server's answer that a driver's error carries, or None if it carries none."""
    # psycopg and psycopg2 have `diag`, asyncpg has attributes, and pg8000 has a dict of the protocol's fields.
    diag = getattr(error, "diag", None)
    fields = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    sqlstate = _text(getattr(error, "sqlstate", None), getattr(error, "pgcode", None), fields.get("C"))
    if sqlstate is None:
        return None
    return _Answer(
        sqlstate,
        _text(getattr(diag, "message_primary", None), getattr(error, "message", None), fields.get("M")) or str(error),
        _text(getattr(diag, "message_detail", None), getattr(error, "detail", None), fields.get("D")),
        _text(getattr(diag, "message_hint", None), getattr(error, "hint", None), fields.get("H")),
    )


def _text(*values: object) -> str | None:
    return next((value for value in values if isinstance(value, str) and value), None)


def _refusal(answer: _Answer) -> Refused:
    refusal = _CLASSES.get(answer.sqlstate, Refused)
    data = _data(refusal, answer.detail)
    return refusal(answer.message, answer.hint, sqlstate=answer.sqlstate, **data)


def _data(refusal: type[Refused], detail: str | None) -> dict[str, Any]:
    """Returns an error's data by the attributes of its class; nothing if an older database sends none."""
    try:
        told = json.loads(detail or "{}")
    except ValueError:
        return {}
    if not isinstance(told, dict):
        return {}
    data: dict[str, Any] = {}
    for name in inspect.get_annotations(refusal):
        if told.get(name) is None:
            continue
        with suppress(ValueError, TypeError, AttributeError):  # such as a time after the year 9999
            data[name] = _READ.get(name, lambda value: value)(told[name])
    return data
