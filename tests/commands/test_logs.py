"""Log lines: one line a record whatever is in it, and each JSON line one object."""

from __future__ import annotations

import json
import logging
import logging.config
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox import SettingsError
from outbox.commands import logs
from outbox.process.service import enable_loggers

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


def test_short_lines_tell_the_time_of_day_who_and_what_and_how_bad_only_if_it_is(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up("short")
    log.info("hello %s", "world")
    log.warning("careful")
    logging.getLogger("shop.orders").error(EVIL)
    lines = said(capsys)
    assert [line.partition(" ")[2] for line in lines[:2]] == ["test     hello world", "test     WARNING careful"]
    assert re.fullmatch(r"\d\d:\d\d:\d\d", lines[0].partition(" ")[0])
    assert lines[2].partition(" ")[2].startswith("shop.orders ERROR a")
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)


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
    assert all(line.isprintable() for line in lines)
    first, second, *trace = lines
    assert "entity a" in first
    assert second.endswith("ERROR   outbox.test: it broke")
    assert all(line.startswith("    ") for line in trace), "a line of an exception is never taken for one of the log"
    assert "test_logs.py" in "".join(trace)
    assert "ValueError: a" in "".join(trace)


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
    assert second["exception"].startswith("Traceback (most recent call last):\n")
    assert "test_logs.py" in second["exception"]


@pytest.mark.parametrize("style", ["text", "json"])
def test_an_exception_that_cannot_be_told_is_no_reason_to_break(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    logs.set_up(style)
    fail(Unspeakable(), log)
    fail(ValueError("x" * 10_000_000), log)
    text = "\n".join(said(capsys))
    assert "Unspeakable: " in text
    assert len(text) < 20_000


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


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_is_logged_whole_and_without_passwords(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    logs.set_up(style)
    dsn = "postgresql://u:canary-5f2a@h/db"
    try:
        try:
            raise ExceptionGroup("several", [KeyError("one"), ValueError(f"can't connect to {dsn}")])
        except* KeyError as error:
            raise RuntimeError("outer") from error
    except BaseException:
        log.exception("it broke", stack_info=True)
    text = "\n".join(said(capsys))
    assert "canary" not in text
    for part in (
        "KeyError: 'one'",
        "postgresql://u:***@h/db",
        "RuntimeError: outer",
        "direct cause",
        "Stack (most recent",
    ):
        assert part in text


def test_the_level_says_what_is_left_out(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("text", "debug")
    log.debug("a detail")
    logs.set_up("text", "ERROR")
    log.warning("not this")
    (line,) = said(capsys)
    assert "a detail" in line


CONFIG = {
    "version": 1,
    "formatters": {"ours": {"()": "outbox.commands.logs.JsonFormatter"}},
    "handlers": {"file": {"class": "logging.FileHandler", "filename": "the.log", "formatter": "ours"}},
    "root": {"level": "INFO", "handlers": ["file"]},
}
TOML = """
[handlers.file]
class = "logging.FileHandler"
filename = "the.log"
[root]
level = "INFO"
handlers = ["file"]
"""


@pytest.mark.parametrize(("name", "text"), [("log.json", json.dumps(CONFIG)), ("log.toml", TOML)])
def test_a_file_configures_logging_and_disables_nothing(
    log: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    logs.set_up("text", config=tmp_path / name)
    log.info("hello")
    assert "hello" in (tmp_path / "the.log").read_text()
    for handler in logging.getLogger().handlers:
        handler.close()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.json", "{"),
        ("log.json", "[]"),
        ("log.toml", "root ="),
        ("log.toml", "version = 2"),
        ("log.json", '{"root": {"handlers": ["nowhere"]}}'),
        ("log.json", '{"handlers": {"h": {"class": "no.such.Class"}}}'),
        ("log.json", "\ud800"),
    ],
)
def test_a_file_that_configures_nothing_is_refused_by_its_name(
    log: logging.Logger, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(SettingsError, match=f"--log-config .*{name}: "):
        logs.set_up("text", config=tmp_path / name)


def test_an_application_that_configures_logging_silences_nothing(log: logging.Logger) -> None:
    logs.set_up("text")
    stage = logging.getLogger("outbox.stage.p.work")
    foreign = logging.getLogger("outboxes")
    logging.config.dictConfig({"version": 1, "loggers": {"outbox.stage": {"level": "ERROR"}}})
    assert log.disabled
    enable_loggers()
    assert not log.disabled
    assert not stage.disabled
    assert foreign.disabled, "what isn't ours is the application's"
    assert not stage.isEnabledFor(logging.WARNING), "and so are the levels that it names"
    logging.getLogger("outbox.stage").setLevel(logging.NOTSET)
    foreign.disabled = False


def test_libraries_that_tell_too_much_are_quiet(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("text")
    logging.getLogger("psycopg.pool").warning("reconnecting")
    logging.getLogger("httpx").info("GET https://example.org/?token=canary")
    assert said(capsys) == []
