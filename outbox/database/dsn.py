"""Reads a DSN, completes it for a session of the engine, and shows it without its secrets."""

from __future__ import annotations

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..errors import SettingsError
from ..texts import printable

_HOW_TO_WRITE = "write it as key=value pairs, or as a URL with %40 for @, %2F for / and %3A for : in the password"


def engine_conninfo(dsn: str, role: str) -> str:
    """Return the DSN with what the engine's sessions add where the user said nothing.

    A name that shows in pg_stat_activity, and limits by which a dead peer is noticed in seconds. SettingsError for a
    DSN that can't be read: what libpq says of it, or of where it leads, may quote the password.
    """
    if not readable(dsn):
        raise SettingsError(f"can't read the DSN {printable(redact(dsn))}: {_HOW_TO_WRITE}")
    given = conninfo_to_dict(dsn)
    defaults = {
        "connect_timeout": "10",
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
    }
    return make_conninfo(
        dsn, **{k: v for k, v in defaults.items() if k not in given}, application_name=f"outbox {role}"
    )


def cannot_connect(dsn: str, error: psycopg.Error) -> str:
    """Return in one line, without any secret, that and why a connection failed."""
    why = printable(" ".join(str(error).split()))
    if not readable(dsn):
        why = _HOW_TO_WRITE
    return f"can't connect to {printable(redact(dsn))}: {why}"


_SECRETS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}


def redact(dsn: str) -> str:
    """Return a DSN without its password, whatever form it has; only its scheme if it isn't `readable`. Never raises."""
    parts = _parts(dsn)
    if parts is not None:
        return make_conninfo("", **{key: "***" if key in _SECRETS else value for key, value in parts.items()})
    kept = re.match(r"\s*(\w+://)?", dsn)
    return f"{(kept and kept.group(1)) or ''}… (not a DSN that can be read)"


def place(dsn: str) -> str:
    """Return which database on which host a DSN names, and nothing else of it."""
    parts = _parts(dsn) or {}
    return f"{parts.get('dbname', '?')} on {parts.get('host') or parts.get('hostaddr') or 'localhost'}"


def readable(dsn: str) -> bool:
    """Whether libpq reads the DSN as it was meant. If not, what it says of the DSN may quote the password."""
    return _parts(dsn) is not None


def _parts(dsn: str) -> dict[str, str] | None:
    """Return what a DSN says; None if it can't be read.

    A URL whose password isn't escaped (`u:p/w@host`) is read by libpq as another host, port or database. What looks
    like that can't be read, either.
    """
    try:
        parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    except (psycopg.Error, ValueError):
        return None  # and not its message, which quotes what it couldn't read
    torn = any("@" in parts.get(key, "") for key in ("host", "dbname"))
    return None if torn or not re.fullmatch(r"[\d,]*", parts.get("port", "")) else parts
