"""Log lines: one line a record whatever is in it, and each JSON line one object."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from outbox.commands import logs

EVIL = "a\nb\r\x1b[31m\x9b2J\u202e\u2028\ud800"


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger to set up; the root's handlers and level are put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # else they would be closed
    try:
        yield logging.getLogger("outbox.test")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of standard error; nothing may be on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def fail(error: BaseException, log: logging.Logger) -> None:
    try:
        raise error
    except type(error):
        log.exception("it broke")


def test_text_lines_tell_when_how_bad_who_and_what(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("text")
    log.info("hello %s", "world")
    log.debug("not this")
    (line,) = said(capsys)
    when, level, rest = line.split(maxsplit=2)
    assert when.endswith("+00:00")
    assert (level, rest) == ("INFO", "outbox.test: hello world")


def test_text_lines_keep_control_characters_out_of_the_terminal(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up("text")
    log.warning("entity %s", EVIL)
    fail(ValueError(EVIL), log)
    lines = said(capsys)
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert "ValueError: a" in lines[1]
    assert "test_logs.py" in lines[1], "an exception is told with its place"


def test_json_lines_are_one_object_each_with_what_the_record_carries(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up("json")
    log.info("entity %s", EVIL, extra={"pipeline": "posts", "when": object, "level": "forged", "message_": EVIL})
    fail(ValueError(EVIL), log)
    lines = said(capsys)
    assert all(line.isascii() and line.isprintable() for line in lines)
    first, second = map(json.loads, lines)
    assert (first["level"], first["logger"], first["message"]) == ("INFO", "outbox.test", f"entity {EVIL}")
    assert (first["pipeline"], first["message_"]) == ("posts", EVIL)
    assert second["level"] == "ERROR"
    assert second["error"].startswith("ValueError: a\nb")


@pytest.mark.parametrize("style", ["text", "json"])
def test_an_exception_that_cannot_be_told_is_no_reason_to_break(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    logs.set_up(style)
    fail(Unspeakable(), log)
    fail(ValueError("x" * 10_000_000), log)
    first, second = said(capsys)
    assert "Unspeakable: (its text can't be had: RuntimeError)" in first
    assert len(second) < 10_000


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("extra", [{1: 2}, {("a", "b"): 1}, Odd(), float("nan"), {"x": {1, 2}}, "loop"])
def test_whatever_a_handler_adds_to_a_record_is_one_json_line(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], extra: Any
) -> None:
    if extra == "loop":
        extra = []
        extra.append(extra)
    logs.set_up("json")
    log.info("hello", extra={"odd": extra})
    (line,) = said(capsys)
    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["message"] == "hello"


@pytest.mark.parametrize("style", ["text", "json"])
def test_words_and_values_that_do_not_fit_are_one_line(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    logs.set_up(style)
    for words, given in (("100% done of %s", "posts"), ("hello", Odd())):
        log.info(words, given)
    first, second = said(capsys)
    assert "100% done of" in first
    assert "posts" in first
    assert "hello" in second


@pytest.mark.parametrize("style", ["text", "json"])
def test_setting_up_again_doubles_no_line(log: logging.Logger, capsys: pytest.CaptureFixture[str], style: str) -> None:
    logs.set_up("text")
    logs.set_up(style)
    log.info("once")
    assert len(said(capsys)) == 1


def test_libraries_that_tell_too_much_are_quiet(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("text")
    logging.getLogger("psycopg.pool").warning("reconnecting")
    logging.getLogger("httpx").info("GET https://example.org/?token=canary")
    assert said(capsys) == []
