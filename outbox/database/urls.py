"""Turns database URLs as SQLAlchemy, asyncpg and others write them into URLs that libpq reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from psycopg.pq import Conninfo

from ..errors import SettingsError
from ..texts import printable

_POSTGRES = re.compile(r"(postgresql|postgres)(\+\w+)?://(.*)", re.DOTALL | re.IGNORECASE)

_AUTHORITY = re.compile(r"(?:([^:/?]*)(?::([^@]*))?@)?([^/?]*)(?:/([^?]*))?(?:\?(.*))?", re.DOTALL)
"""User, password, hosts with ports, database and query, read as SQLAlchemy does: a password may have a `/`."""

_RENAMED = {"ssl": "sslmode", "timeout": "connect_timeout", "database": "dbname"}
"""Parameters that asyncpg and SQLAlchemy call otherwise than libpq."""

_CACHES = {
    "prepared_statement_cache_size",
    "prepared_statement_name_func",
    "statement_cache_size",
    "max_cached_statement_lifetime",
    "max_cacheable_statement_size",
    "prepare_threshold",
    "async_fallback",
}
"""Parameters that tune another driver and say nothing about the database. They are left out."""

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def libpq(text: str, *, sqlalchemy: bool = False) -> str:
    """Returns a DSN as libpq reads it. One that libpq reads as it is, and one of another kind, stays unchanged.

    A URL with a driver (`postgresql+asyncpg://`), and with `sqlalchemy` any URL, is read as SQLAlchemy reads it: in its
    query, + is a space, and each `host` may have a port. `ssl` and `timeout` are translated, and what tunes another
    driver's cache is left out. Raises SettingsError, which names the parameter, if the query has any other parameter
    that libpq doesn't know.
    """
    text = text.strip()
    url = _POSTGRES.fullmatch(text)
    if url is None:
        return text
    rest = url[3]
    if sqlalchemy or url[2] or not url[0].startswith(url[1].lower()):
        return "postgresql://" + _rewritten(rest)
    before, mark, query = rest.partition("?")
    pairs = query.split("&")
    if all(unquote(pair.partition("=")[0]) in _KNOWN or pair in ("", "ssl=true") for pair in pairs):
        return text
    kept = [_pair(key, value) for key, value in _read(query.replace("+", "%2B"))]
    return f"{url[1]}://{before}{mark * bool(kept)}{'&'.join(kept)}"


def _rewritten(rest: str) -> str:
    found = _AUTHORITY.fullmatch(rest)
    if found is None:
        return rest
    user, password, hosts, database, query = found.groups()
    login = ":".join(_quoted(each) for each in (user, password) if each is not None)
    pairs = list(_read(query or ""))
    places = [value for key, value in pairs if key == "host"]
    if not hosts and any(re.search(r"\w:\d+$", place) for place in places):
        hosts, pairs = ",".join(places), [(key, value) for key, value in pairs if key != "host"]
    elif len(places) > 1:
        pairs = [("host", ",".join(places)), *((key, value) for key, value in pairs if key != "host")]
    before = (f"{login}@" if user is not None else "") + hosts
    before += "" if database is None else "/" + _quoted(database)
    return before + ("?" if pairs else "") + "&".join(_pair(key, value) for key, value in pairs)


def _read(query: str) -> Iterator[tuple[str, str]]:
    """Yields the parameters of a query, named as libpq names them."""
    for given, value in parse_qsl(query, keep_blank_values=True):
        if given in _CACHES:
            continue
        key = _RENAMED.get(given, given)
        if key not in _KNOWN:
            raise SettingsError(
                f"the DSN has the parameter {printable(given)}, which libpq does not know: leave it out. "
                f"A setting of the server is written options=-c%20name%3Dvalue"
            )
        if given == "ssl":
            value = "require" if value.lower() == "true" else value
            if value not in _SSL_MODES:
                raise SettingsError(f"the DSN has ssl={printable(value)}: write sslmode={'|'.join(_SSL_MODES)}")
        if given == "timeout":
            value = _whole_seconds(value)
        yield key, value


def _whole_seconds(value: str) -> str:
    try:
        return str(max(1, round(float(value))))
    except (ValueError, OverflowError):
        raise SettingsError("the DSN has a timeout that is not a number of seconds: write connect_timeout=10") from None


def _pair(key: str, value: str) -> str:
    return f"{quote(key, safe='')}={quote(value, safe='')}"


def _quoted(part: str) -> str:
    return quote(unquote(part), safe="")


def _known() -> frozenset[str]:
    options: list[Any] = Conninfo.get_defaults()
    return frozenset(option.keyword.decode() for option in options)


_KNOWN = _known()
"""The parameters of the libpq that psycopg uses."""
