"""URLs as SQLAlchemy, asyncpg and others write them lead where they led there, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict

from outbox import SettingsError
from outbox.database.dsn import readable, redact
from outbox.database.urls import libpq

CANARY = "c4n4ry-pw"


def parts(text: str, **options: Any) -> dict[str, Any]:
    return dict(conninfo_to_dict(libpq(text, **options)))


SHOP = {"user": "u", "password": "p", "host": "h", "dbname": "shop"}


@pytest.mark.parametrize(
    "scheme",
    ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+pg8000",
     "postgresql+psycopg_async", "postgres+asyncpg", "POSTGRESQL", "PostgreSQL+AsyncPG"],
)  # fmt: skip
def test_the_driver_in_a_scheme_says_nothing_about_the_database(scheme: str) -> None:
    assert parts(f"{scheme}://u:p@h/shop") == SHOP
    assert parts(f"  {scheme}://u:p@h:6432/shop?sslmode=require\n") == {**SHOP, "port": "6432", "sslmode": "require"}


@pytest.mark.parametrize(
    "text",
    ["host=h dbname=shop password='a b://c'", "", "dbname=x", "postgresql://h1,h2:6432/d?target_session_attrs=any",
     "postgresql://u:a+b@h/d?options=-c%20search_path%3Dx", "postgresql://u:p@[::1]:5/d", "postgres:///d?host=/run",
     "service=shop", "mysql://h/d", "postgresql://h/d?ssl=true", "postgresql://u:p/w@h/d"],
)  # fmt: skip
def test_what_libpq_reads_and_what_is_of_another_kind_stays_as_it_is(text: str) -> None:
    assert libpq(text) == text


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql", "postgres"])
def test_parameters_of_other_drivers_are_translated_or_left_out(scheme: str) -> None:
    assert parts(f"{scheme}://u:p@h/shop?ssl=require") == {**SHOP, "sslmode": "require"}
    assert parts(f"{scheme}://u:p@h/shop?ssl=true") == {**SHOP, "sslmode": "require"}
    assert parts(f"{scheme}://u:p@h/shop?prepared_statement_cache_size=0") == SHOP
    given = "statement_cache_size=0&timeout=2.6&ssl=verify-full&application_name=a%26b&sslrootcert=%2Fca.pem"
    assert parts(f"{scheme}://u:p@h/shop?{given}") == {
        **SHOP, "connect_timeout": "3", "sslmode": "verify-full", "application_name": "a&b", "sslrootcert": "/ca.pem",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "named"),
    [("pgbouncer=true", "pgbouncer"), ("schema=shop", "schema"), ("command_timeout=5", "command_timeout"),
     ("pool_size=3&sslmode=require", "pool_size"), ("ssl=maybe", "ssl=maybe"), ("timeout=soon", "timeout"),
     ("search_path=x", "search_path"), ("sslmode=require&conn_max_age=60", "conn_max_age")],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql", "postgres"])
def test_other_parameters_are_refused_by_name(scheme: str, query: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named) as refused:
        libpq(f"{scheme}://u:{CANARY}@h/shop?{query}")
    assert CANARY not in str(refused.value)


def test_several_hosts_as_sqlalchemy_writes_them() -> None:
    for text in (
        "postgresql+psycopg://u:p@/shop?host=h1:1&host=h2:2",
        "postgresql+asyncpg://u:p@/shop?host=h1:1,h2:2",
        "postgresql+psycopg://u:p@h1:1,h2:2/shop",
        "postgresql+psycopg://u:p@/shop?host=h1&host=h2&port=1,2",
        "postgresql+psycopg://u:p@/shop?host=h1,h2&port=1,2",
    ):
        assert parts(text) == {"user": "u", "password": "p", "host": "h1,h2", "port": "1,2", "dbname": "shop"}, text
    assert parts("postgresql+psycopg:///shop?host=/run/postgresql") == {"host": "/run/postgresql", "dbname": "shop"}
    assert parts("postgresql+psycopg://[::1]:6/shop") == {"host": "::1", "port": "6", "dbname": "shop"}
    assert parts("postgresql+psycopg://") == {}


@pytest.mark.parametrize(
    "password", ["p", "", "a b", "a+b", "a%b", "a/b@c:d?e#f", "☃", "a%20b", "&=", "'\"\\", "[x]", " lead"]
)
@pytest.mark.parametrize("driver", ["postgresql", "postgresql+asyncpg", "postgresql+psycopg"])
def test_a_url_of_sqlalchemy_keeps_every_character(driver: str, password: str) -> None:
    url = sqlalchemy.URL.create(
        driver, password, password, "db.example", 6432, "shop x", query={"options": "-c search_path=a+b"}
    )
    wanted = {"user": password, "password": password, "host": "db.example", "port": "6432", "dbname": "shop x",
              "options": "-c search_path=a+b"}  # fmt: skip
    assert parts(url.render_as_string(hide_password=False), sqlalchemy=True) == {
        key: value for key, value in wanted.items() if value
    }


def test_a_password_that_is_torn_is_not_read_as_a_host() -> None:
    torn = libpq(f"postgresql+asyncpg://u:p@{CANARY}@h/shop")
    assert not readable(torn)
    assert CANARY not in redact(torn)
    assert parts("postgresql+asyncpg://u:p/w@h/shop")["password"] == "p/w", "as SQLAlchemy reads it"
