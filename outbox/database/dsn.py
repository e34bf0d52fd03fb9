"""Reads a DSN, completes it for a session of the engine, and shows it without its secrets."""

from __future__ import annotations

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..errors import SettingsError
from ..process.files import no_more_files
from ..texts import printable

_ESCAPED = "write it as key=value pairs, or as a URL with %40 for @, %2F for / and %3A for : in the password"


def engine_conninfo(dsn: str, role: str) -> str:
    """Returns the DSN with the parameters that sessions of Outbox have unless the DSN says otherwise.

    They are an application_name, which pg_stat_activity shows, and timeouts by which a dead peer is noticed within
    seconds. Raises SettingsError for a DSN that can't be read: libpq's own message may quote the password.
    """
    if not readable(dsn):
        raise SettingsError(f"can't read the DSN {printable(redact(dsn))}: {_how_to_write(dsn)}")
    given = conninfo_to_dict(dsn)
    defaults = {
        "connect_timeout": "10",
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
    }
    return make_conninfo(
        dsn,
        **{k: v for k, v in defaults.items() if k not in given},
        application_name=f"outbox {role}",
        client_encoding="UTF8",  # what the database or the role says may not have all characters
    )


def cannot_connect(dsn: str, error: psycopg.Error) -> str:
    """Returns in one line, without any secret, why a connection failed."""
    why = no_more_files() or printable(" ".join(str(error).split()))
    if not readable(dsn):
        why = _how_to_write(dsn)
    return f"can't connect to {printable(redact(dsn))}: {why}"


def _how_to_write(dsn: str) -> str:
    scheme = re.match(r"\s*([\w.+-]+)://", dsn)
    if scheme and scheme[1] not in ("postgresql", "postgres"):
        return f"its scheme must be postgresql://, not {printable(scheme[1])}://"
    return _ESCAPED


# Parameters of libpq that hold a secret.
_SECRETS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}


def redact(dsn: str) -> str:
    """Returns a DSN of any form without its secrets, or only its scheme if it isn't `readable`. Never raises."""
    parts = _parts(dsn)
    if parts is not None:
        return make_conninfo("", **{key: "***" if key in _SECRETS else value for key, value in parts.items()})
    kept = re.match(r"\s*([\w.+-]+://)?", dsn)
    return f"{(kept and kept.group(1)) or ''}… (not a DSN that can be read)"


def place(dsn: str) -> str:
    """Returns which database on which host a DSN names, and nothing else of it."""
    parts = _parts(dsn) or {}
    return f"{parts.get('dbname', '?')} on {parts.get('host') or parts.get('hostaddr') or 'localhost'}"


def readable(dsn: str) -> bool:
    """Tells whether libpq reads the DSN as it was meant. If not, libpq's messages may quote the password."""
    return _parts(dsn) is not None


def _parts(dsn: str) -> dict[str, str] | None:
    """Returns the parameters of a DSN, or None if it can't be read.

    libpq reads a URL whose password isn't escaped (`u:p/w@host`) as another host, port or database. A DSN that looks
    like that counts as one that can't be read.
    """
    try:
        parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    except (psycopg.Error, ValueError):
        return None  # not the message, which quotes what libpq couldn't read
    torn = any("@" in parts.get(key, "") for key in ("host", "dbname"))
    return None if torn or not re.fullmatch(r"[\d,]*", parts.get("port", "")) else parts
