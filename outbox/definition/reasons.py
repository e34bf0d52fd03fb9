"""Describes why a user's function failed: in one line, and as a traceback from that function down.

Both include every leaf of an exception group, causes, contexts and notes. Neither has the values of variables, and both
leave out the passwords of DSNs and URLs.
"""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import suppress
from textwrap import indent
from types import TracebackType
from typing import Any

from ..errors import OutboxError
from ..process.places import is_ours, place_in
from ..texts import MAX_ERROR, clean, printable, without_passwords

MAX_TRACEBACK = 16_000
"""How many characters of a traceback are kept: enough for a few leaves with their causes. A longer one is cut in the
middle, because its ends say where it began and how it ended."""

_MAX_LINE = 1_000
"""The most characters of a line in a traceback, and of each message where there are several."""

_MAX_LEAVES = 100
"""How many exceptions of a group are reported: thousands of failures have few reasons."""

_MAX_CHAIN = 8
"""How many links of a chain of causes are reported in a line. The traceback has the deeper ones."""


def describe(error: BaseException) -> str:
    """Returns `Type: message (file:line in function)` for any exception, storable, even if its `__str__` raises.

    The place is the last line of the user's own code. Leaves of groups, causes and notes follow.
    """
    parts = leaves(error)
    alone = len(parts) == 1 and _reason_of(parts[0]) is None
    try:
        found = _chain(error, MAX_ERROR if alone else _MAX_LINE)
    except Exception as broken:  # an exception may be of any class, with any attributes
        found = f"{type(error).__name__}: (it can't be described: {type(broken).__name__})"
    return clean(without_passwords(found), MAX_ERROR + 500)


def leaves(error: BaseException) -> list[BaseException]:
    """Returns the exceptions of a group and of the groups in it; any other exception as the only item."""
    found: list[BaseException] = []
    stack = [error]
    while stack:
        item = stack.pop()
        if isinstance(item, BaseExceptionGroup):
            stack.extend(reversed(item.exceptions))
        else:
            found.append(item)
    return found


def from_handler(error: BaseException) -> BaseException:
    """Returns the exception without Outbox's own frames in its traceback, and in those of its causes and contexts.

    A traceback that has only Outbox's frames stays unchanged, because then the error is Outbox's own.
    """
    with suppress(Exception):  # for example, a user's class may not let us set the attribute
        for each in _all_of(error):
            each.__traceback__ = _without_ours(each.__traceback__)
    return error


def traceback_of(error: BaseException) -> str:
    """Returns the traceback of any exception as lines of printable text. Messages have no line breaks in it."""
    try:
        told = traceback.TracebackException(
            type(error), error, error.__traceback__, compact=True, max_group_width=_MAX_LEAVES, max_group_depth=20
        )
        lines = "".join(told.format()).rstrip("\n").split("\n")
        left_out = {line for each in _all_of(error) for part in _sql_of(each) for line in part.split("\n")}
        if left_out:
            lines = [line for line in lines if line.lstrip(" |") not in left_out and line not in left_out]
    except Exception:  # an exception may be of any class, with any attributes
        lines = [describe(error)]
    return bounded(without_passwords("\n".join(printable(clean(line, _MAX_LINE)) for line in lines)))


def log_with(
    log: logging.Logger, level: int, error: BaseException | None, message: str, *args: Any, **extra: Any
) -> None:
    """Logs a message with the exception of a user's function, whose traceback begins with that function.

    Other formatters than Outbox's also write what `traceback_of` returns: no control characters, and no passwords. They
    write it indented, so that no line of an error looks like a line of the log.
    """
    if not log.isEnabledFor(level):
        return
    file, line, function, _ = log.findCaller(stacklevel=2)
    info = None if error is None else (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, level, file, line, message, args, info, function, extra)
    record.exc_text = None if error is None else indent(traceback_of(error), "    ")
    log.handle(record)


def bounded(text: str, longest: int = MAX_TRACEBACK) -> str:
    """Returns a traceback with lines in the middle cut out, so that about `longest` characters remain."""
    if len(text) <= longest:
        return text
    first, last = text[: longest // 4], text[-(longest - longest // 4) :]
    first, last = first.rpartition("\n")[0] or first, last.partition("\n")[2] or last
    return f"{first}\n… ({len(text) - len(first) - len(last):,} characters left out)\n{last}"


def _chain(error: BaseException, longest: int) -> str:
    """Returns an exception with its causes and contexts, in one line."""
    told: list[str] = []
    seen: set[int] = set()
    link = ""
    found: BaseException | None = error
    while found is not None and id(found) not in seen and len(told) < _MAX_CHAIN:
        seen.add(id(found))
        told.append(link + _one(found, longest))
        link = ", caused by " if found.__cause__ is not None else ", while handling "
        found = _reason_of(found)
    return "".join(told)


def _one(error: BaseException, longest: int) -> str:
    message = _message(error, longest)
    notes = [str(note) for note in getattr(error, "__notes__", None) or () if isinstance(note, str)]
    if not isinstance(error, BaseExceptionGroup):
        return _headed(type(error).__name__, "; ".join(filter(None, [message, *notes]))) + _place(error)
    parts = leaves(error)
    told = [_chain(each, _MAX_LINE) for each in parts[:_MAX_LEAVES]]
    if len(parts) > _MAX_LEAVES:
        told.append(f"and {len(parts) - _MAX_LEAVES:,} more")
    # The group's own message, such as "unhandled errors in a TaskGroup", comes last: it is seldom the reason.
    words = _headed(type(error).__name__, "; ".join(filter(None, [error.message, *notes])))
    return f"{'; '.join(told)} (in {clean(words, longest)})"


def _headed(name: str, text: str) -> str:
    return f"{name}: {text}" if text else name


def _message(error: BaseException, longest: int) -> str:
    try:
        return clean(_without_sql(error, str(error)), longest)
    except BaseException as broken:
        return f"(its text can't be had: {type(broken).__name__})"


def _without_sql(error: BaseException, text: str) -> str:
    """Returns the text of a database error without the statements that the server or an ORM has put into it.

    What a trigger or function was doing (CONTEXT, QUERY) is the engine's, and an ORM's statement and parameters may be
    as long as the data. The traceback has the place.
    """
    for context in _sql_of(error):
        text = text.replace(f"\n{context}", "")
    return text


def _sql_of(error: BaseException) -> Iterator[str]:
    """Yields such parts of a database error's text, of any driver, also as an ORM or Django wraps it."""
    for each in (error, getattr(error, "orig", None), error.__cause__):
        diag = getattr(each, "diag", None)
        for label, name in (("QUERY", "internal_query"), ("CONTEXT", "context")):
            if isinstance(value := getattr(diag, name, None), str):
                yield f"{label}:  {value}"
    if isinstance(getattr(error, "statement", None), str):  # SQLAlchemy
        yield from re.findall(r"^\[SQL: .*", str(error), re.DOTALL | re.MULTILINE)


def _reason_of(error: BaseException) -> BaseException | None:
    """Returns the cause or context of an exception, if it says more than the exception itself."""
    found = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    # A TimeoutError's context is the cancellation that the timeout itself caused.
    return None if isinstance(found, asyncio.CancelledError | StopIteration | GeneratorExit) else found


def _all_of(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception, the exceptions in its groups, and all their causes and contexts, each once."""
    seen: set[int] = set()
    stack: list[BaseException | None] = [error]
    while stack:
        found = stack.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        stack += [found.__cause__, found.__context__]
        if isinstance(found, BaseExceptionGroup):
            stack += found.exceptions
        yield found


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    frames = [step for step in _steps(trace) if not _is_ours(step)]
    if not frames:
        return trace
    kept: TracebackType | None = None
    for step in reversed(frames):
        kept = TracebackType(kept, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return kept


def _place(error: BaseException) -> str:
    """Returns where the user's code raised an exception, or called the library that raised it.

    A module that can't be compiled has no such line: its place is in the message.
    """
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        return ""
    steps = list(_steps(error.__traceback__))
    if isinstance(error, OutboxError) or not all(map(_is_ours, steps)):
        steps = [step for step in steps if not _is_ours(step)]
    place = place_in([(step.tb_frame, step.tb_lineno) for step in steps]) if steps else ""
    return f" ({place})" if place else ""


def _steps(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_ours(step: TracebackType) -> bool:
    return is_ours(step.tb_frame.f_code.co_filename)
