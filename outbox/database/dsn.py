"""Reads a DSN, completes it for a session of the engine, and shows it without its secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from ..errors import SettingsError
from ..process.files import no_more_files
from ..texts import printable

_ESCAPED = "write it as key=value pairs, or as a URL with %40 for @, %2F for / and %3A for : in the password"


# A worker asks some 15 times for each session that it opens.
@lru_cache(maxsize=32)
def params_of(dsn: str) -> Mapping[str, Any]:
    """Returns the parameters of a DSN as libpq reads them. Raises psycopg's error, which may quote a password."""
    return MappingProxyType(conninfo_to_dict(dsn))


def engine_conninfo(dsn: str, role: str, *, writable: bool = False, several: bool = False) -> str:
    """Returns the DSN with the parameters that sessions of Outbox have unless the DSN says otherwise.

    They are an application_name, which pg_stat_activity shows, and timeouts by which a dead peer is noticed within
    seconds. `writable`: of its hosts and their addresses, the first one that can be written to. `several`: its name has
    several addresses. Raises SettingsError for a DSN that can't be read: libpq's own message may quote the password.
    """
    if not readable(dsn):
        raise SettingsError(f"can't read the DSN {printable(redact(dsn))}: {_how_to_write(dsn)}")
    given = params_of(dsn)
    defaults = {
        # For each address: a host that hangs must not keep us long from the next one. A lone one may be slow, and
        # attempts.py makes others beside it.
        "connect_timeout": "3" if several or _has_hosts(given) else "10",
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
    }
    if writable and "PGTARGETSESSIONATTRS" not in os.environ:
        defaults["target_session_attrs"] = "read-write"
    return make_conninfo(
        dsn,
        **{k: v for k, v in defaults.items() if k not in given},
        application_name=f"outbox {role}",
        client_encoding="UTF8",  # what the database or the role says may not have all characters
    )


def ways(
    dsn: str, role: str, *, pooled: bool, read_only: bool = False, several: bool = False
) -> list[tuple[str, bool]]:
    """Returns the connection strings to try, one after the other, each with whether it is the last.

    A pooler remembers what the server was, and may say that a new primary is read-only: where it leads must be asked
    of the server. Only to choose among several hosts its word is taken first. `read_only`: in the end any server will
    do, whatever the DSN says.
    """
    writable, any_server = (engine_conninfo(dsn, role, writable=each, several=several) for each in (True, False))
    if read_only:
        any_server = make_conninfo(any_server, target_session_attrs="any")
    if not (pooled or read_only):
        return [(writable, True)]
    return [(writable, False), (any_server, True)] if _has_hosts(params_of(dsn)) else [(any_server, True)]


def host_last(dsn: str, host: str, port: str) -> str:
    """Returns a DSN of several hosts with one of them at the end, and any other one as it is."""
    given = params_of(dsn)
    lists = {key: str(given[key]).split(",") for key in ("host", "hostaddr", "port") if "," in str(given.get(key, ""))}
    count = max(map(len, lists.values()), default=1)
    if any(len(each) != count for each in lists.values()):
        return dsn  # libpq says what is wrong with it
    names, ports = lists.get("host") or lists.get("hostaddr"), lists.get("port", [str(given.get("port", ""))] * count)
    if names is None:
        return dsn
    order = sorted(range(count), key=lambda n: names[n] == host and (ports[n] or "5432") == port)
    return make_conninfo(dsn, **{key: ",".join(each[n] for n in order) for key, each in lists.items()})


def _has_hosts(given: Mapping[str, object]) -> bool:
    return any("," in str(given.get(key, "")) for key in ("host", "hostaddr"))


def cannot_connect(dsn: str, error: psycopg.Error) -> str:
    """Returns in one line, without any secret, why a connection failed."""
    why = no_more_files() or printable(" ".join(str(error).split()))
    if not readable(dsn):
        why = _how_to_write(dsn)
    return f"can't connect to {printable(redact(dsn))}: {why}"


def _how_to_write(dsn: str) -> str:
    scheme = re.match(r"\s*([\w.+-]+|jdbc:\w+)://", dsn)
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


def as_environment(dsn: str) -> tuple[dict[str, str], str]:
    """Returns a DSN as variables that programs of Postgres read, and as a DSN of what has no variable.

    Secrets without one are left out. Raises SettingsError for a DSN that can't be read.
    """
    parts = _parts(dsn)
    if parts is None:
        raise SettingsError(f"can't read the DSN {printable(redact(dsn))}: {_how_to_write(dsn)}")
    names = {each.keyword.decode(): each.envvar.decode() for each in Conninfo.get_defaults() if each.envvar}
    rest = {key: value for key, value in parts.items() if key not in names and key not in _SECRETS}
    return {names[key]: value for key, value in parts.items() if key in names}, make_conninfo("", **rest)


def place(dsn: str) -> str:
    """Returns which database on which host a DSN names, and nothing else of it."""
    parts = _parts(dsn) or {}
    return f"{parts.get('dbname', '?')} on {parts.get('host') or parts.get('hostaddr') or 'localhost'}"


def address(dsn: str) -> str:
    """Returns what tells a DSN's database from others: its name, hosts and ports, in whatever order it lists them."""
    parts = _parts(dsn) or {}
    hosts = (parts.get("host") or parts.get("hostaddr") or "localhost").split(",")
    ports = (parts.get("port") or "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return f"{parts.get('dbname', '?')} on {', '.join(sorted(map(':'.join, zip(hosts, ports, strict=False))))}"


def readable(dsn: str) -> bool:
    """Tells whether libpq reads the DSN as it was meant. If not, libpq's messages may quote the password."""
    return _parts(dsn) is not None


def _parts(dsn: str) -> dict[str, str] | None:
    """Returns the parameters of a DSN, or None if it can't be read.

    libpq reads a URL whose password isn't escaped (`u:p/w@host`) as another host, port or database. A DSN that looks
    like that counts as one that can't be read.
    """
    try:
        parts = {key: str(value) for key, value in params_of(dsn).items()}
    except (psycopg.Error, ValueError):
        return None  # not the message, which quotes what libpq couldn't read
    torn = any("@" in parts.get(key, "") for key in ("host", "dbname"))
    return None if torn or not re.fullmatch(r"[\d,]*", parts.get("port", "")) else parts
