"""Log lines of the command line: text for people, or one JSON object a line. On standard error, never a secret."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from .documents import describe, printable

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """One line a record, control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {printable(record.getMessage())}"
        if record.exc_info and record.exc_info[1]:
            line += f": {printable(describe(record.exc_info[1]))}"
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a record: ts, level, logger, message and whatever the record carries besides."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        found = {"ts": _time(record), "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[1]:
            found["error"] = describe(record.exc_info[1])
        return json.dumps({**extra, **found}, default=str)


def set_up(style: str) -> None:
    """Send log lines to standard error as `text` or `json`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("psycopg.pool", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
