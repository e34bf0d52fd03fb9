"""Writes the logs of the command line to standard error: as text, short text for a terminal, or JSON objects."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ..definition.reasons import describe, traceback_of
from ..errors import SettingsError
from ..texts import printable

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """Formats a record as one line, with control characters escaped, followed by the indented lines of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {printable(_message(record))}"
        return "\n    ".join([line, *_traceback(record)])


class ShortFormatter(logging.Formatter):
    """Formats a record for somebody who watches: the local time of day, who says it and what, in colours if wanted.

    The level is named from warnings on. Our own loggers are named by what they belong to: worker, page.
    """

    def __init__(self, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        who = record.name.split(".")[1] if record.name.startswith("outbox.") else record.name
        level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        colour = "red" if record.levelno >= logging.ERROR else "yellow" if level else None
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{self._in(f'{time} {who:<8}', dim=True)} {self._in(level + printable(_message(record)), fg=colour)}"
        return "\n    ".join([line, *_traceback(record)])

    def _in(self, text: str, **style: Any) -> str:
        return click.style(text, **style) if self._colours else text


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: ts, level, logger, message, and the record's extra attributes.

    `error` is the exception in one line, `exception` its traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        found = {"ts": _time(record), "level": record.levelname, "logger": record.name, "message": _message(record)}
        if record.exc_info and record.exc_info[1]:
            found["error"] = describe(record.exc_info[1])
        if lines := _traceback(record):
            found["exception"] = "\n".join(lines)
        try:
            return json.dumps({**extra, **found}, default=str, allow_nan=False)
        except Exception:  # an application may add values that are not JSON, and whose str() raises
            return json.dumps({**{key: _told(value) for key, value in extra.items()}, **found})


def set_up(style: str, level: str = "INFO", config: Path | None = None) -> None:
    """Sends logs to standard error, as `text`, `short` or `json`; with `config`, wherever that file says.

    An application that configures logging when it is imported overrides this.
    """
    if config is not None:
        _configure(config)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(style))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("psycopg.pool", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # the relay itself reports what matters


def _formatter(style: str) -> logging.Formatter:
    if style == "short":
        return ShortFormatter(colours=sys.stderr.isatty() and not os.environ.get("NO_COLOR"))
    return JsonFormatter() if style == "json" else TextFormatter()


def _configure(file: Path) -> None:
    """Configures logging by a file for `logging.config.dictConfig`. Raises SettingsError if the file is invalid."""
    try:
        text = file.read_text(encoding="utf-8")
        found = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **found})
    except Exception as error:  # the file names classes that are imported and called, and may raise anything
        reason = error.__cause__ or error
        raise SettingsError(f"--log-config {file}: {printable(reason) or type(reason).__name__}") from None


def _traceback(record: logging.LogRecord) -> list[str]:
    # Not `exc_text`, because another handler's formatter may have cached its own text there.
    lines = traceback_of(record.exc_info[1]).split("\n") if record.exc_info and record.exc_info[1] else []
    if record.stack_info:
        lines += [printable(line) for line in record.stack_info.split("\n")]
    return lines


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the format doesn't fit the arguments: a line with both is better than a traceback
        return f"{_told(record.msg)} % {_told(record.args)}"


def _told(value: object) -> str:
    try:
        return repr(value)[:1_000]
    except Exception:
        return f"<{type(value).__name__}>"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
