"""Makes text from any source safe to show or to store: cleaned, cut, in one line."""

from __future__ import annotations

import re
import shlex

from pydantic import ValidationError

from .errors import InvalidInput

MAX_ERROR = 8_000
"""How many characters of an error's text are kept: about a traceback, which a row of dead_jobs easily holds."""


def text_problem(text: object, longest: int) -> str | None:
    """Returns what keeps a text from being stored unchanged. None if nothing does."""
    if not isinstance(text, str):
        return f"must be a string, not {type(text).__name__}"
    if not text:
        return "is empty"
    if len(text) > longest:
        return f"has {len(text):,} characters; the limit is {longest}"
    if "\0" in text:
        return "has a NUL character, which Postgres can't store"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "has a lone surrogate, which is not Unicode text"
    return None


def check_text(text: object, field: str, longest: int) -> str:
    """Returns `text` if Postgres can store it unchanged. Otherwise raises InvalidInput, which names `field`."""
    problem = text_problem(text, longest)
    if problem is not None:
        raise InvalidInput(field, problem)
    assert isinstance(text, str)
    return text


def check_optional(text: object, field: str, longest: int) -> None:
    """Does what `check_text` does, unless `text` is None."""
    if text is not None:
        check_text(text, field, longest)


def clean(text: str, longest: int = MAX_ERROR) -> str:
    """Returns any text in a form that can be stored: cut, with NUL and lone surrogates replaced. Never raises."""
    if len(text) > longest:
        text = text[:longest] + f"… ({len(text) - longest:,} characters more)"
    return text.replace("\0", "�").encode("utf-8", "replace").decode("utf-8")


_IN_URL = re.compile(r"(\w[\w+.-]*://[^\s:/@'\"]*):[^\s'\"]*@")
_IN_KEYS = re.compile(
    r"""\b((?:ssl)?password\s?=\s?)('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|'[^'\n]*|[^\s'",)]+)""", re.IGNORECASE
)


def without_passwords(text: str) -> str:
    """Returns text with `***` for the passwords of URLs and DSNs. Errors quote them, and lines of code contain them."""
    if "://" in text:
        text = _IN_URL.sub(r"\1:***@", text)
    return _IN_KEYS.sub(r"\1***", text)


def printable(value: object) -> str:
    """Returns text with control characters escaped, for log lines and terminals."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def word(value: object) -> str:
    """Returns text as a word of a command, quoted where a shell needs it."""
    return printable(shlex.quote(str(value)))


def shown(value: object) -> str:
    """Returns any value as error messages show it: short and storable, even if its `__repr__` raises."""
    try:
        return clean(repr(value), 80)
    except Exception:  # for example, an integer with too many digits for Python to write
        return f"a value of type {type(value).__name__}"


def size(*several: str | None) -> int:
    """Returns the total size of these texts in bytes of UTF-8."""
    total = 0
    for text in several:  # a generator would take twice as long, and each message is weighed
        if text:
            total += len(text) if text.isascii() else len(text.encode())
    return total


def number(count: int, noun: str) -> str:
    """Returns a count with its noun: "1 job", "2,000 jobs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def span(seconds: float) -> str:
    """Returns a span of time in the largest unit of which there are two: "1 second", "90 minutes", "2 days"."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * length:
            return number(round(seconds / length), unit)
    return number(max(0, round(seconds)), "second")


def age(seconds: float | None) -> str:
    """Returns a span of time in short: "5s", "3m", "2h", "4d". A clock that is behind makes it "0s"."""
    if seconds is None:
        return ""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def explain(error: ValidationError) -> str:
    """Returns a validation error in one line. It leaves out the values, which may be large or secret."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(map(str, item['loc'])) or 'value'}: {item['msg']}" for item in found[:5]]
    if len(found) > 5:
        lines.append(f"and {len(found) - 5} more")
    return clean("; ".join(lines))
