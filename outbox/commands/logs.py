"""Writes the log lines of the command line to standard error, as text for people or as a JSON object per line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from ..texts import describe, printable

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """Formats a record as one line, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {printable(_message(record))}"
        if record.exc_info and record.exc_info[1]:
            line += f": {printable(describe(record.exc_info[1]))}"
        return line


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: ts, level, logger, message, and the record's extra attributes."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        found = {"ts": _time(record), "level": record.levelname, "logger": record.name, "message": _message(record)}
        if record.exc_info and record.exc_info[1]:
            found["error"] = describe(record.exc_info[1])
        try:
            return json.dumps({**extra, **found}, default=str, allow_nan=False)
        except Exception:  # an application may add values that are not JSON, and whose text raises
            return json.dumps({**{key: _told(value) for key, value in extra.items()}, **found})


def set_up(style: str) -> None:
    """Sends log lines to standard error, as `text` or `json`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("psycopg.pool", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # the relay reports what matters of it


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the text doesn't fit its values: a line with both is better than a traceback
        return f"{_told(record.msg)} % {_told(record.args)}"


def _told(value: object) -> str:
    try:
        return repr(value)[:1_000]
    except Exception:
        return f"<{type(value).__name__}>"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
