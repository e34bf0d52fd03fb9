"""sql/schema.sql is what the migrations make."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from kit.servers import PostgresServer
from tools.schema import dump


def test_schema_sql_is_what_the_migrations_make(make_server: Callable[[str], PostgresServer]) -> None:
    stored = files("outbox.sql").joinpath("schema.sql").read_text(encoding="utf-8")
    assert dump(make_server("18")) == stored, "run: make schema"
