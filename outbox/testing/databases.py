"""Makes databases for tests: clones of templates that are migrated and deployed once, by pytest-postgresql's tools."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pytest_postgresql.janitor import DatabaseJanitor

from ..database import embedded
from ..definition.deployed import Definition
from ..definition.pipeline import Pipeline
from ..operations.prepare import deploy, migrate

FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
"""Settings of the bundled server. Nothing of a test's is worth a wait for the disk."""


@contextmanager
def server(home: Path) -> Iterator[str]:
    """Yields the DSN of a server for tests: OUTBOX_TEST_DSN, or a bundled one in the folder `home`.

    The bundled one doesn't wait for the disk. The role of OUTBOX_TEST_DSN must be one that may create databases.
    """
    if dsn := os.environ.get("OUTBOX_TEST_DSN"):
        yield dsn
        return
    with embedded.server(home) as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            for name, value in FAST.items():
                conn.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            conn.execute("SELECT pg_reload_conf()")
        yield dsn


class Databases:
    """Clones databases on a server. Templates are made when they are first needed, and dropped by `close`."""

    def __init__(self, dsn: str, worker: str = "") -> None:
        self._dsn = dsn
        self._prefix = f"outbox_test_{worker or 'main'}_{uuid.uuid4().hex[:8]}"
        self._numbers = itertools.count(1)
        self._templates: list[tuple[dict[str, Definition], str]] = []
        self._made = ExitStack()
        with psycopg.connect(dsn) as conn:
            (self._is_durable,) = conn.execute("SELECT current_setting('fsync')::boolean").fetchone() or (True,)

    @contextmanager
    def clone(self, pipelines: Pipeline[Any] | Iterable[Pipeline[Any]] = ()) -> Iterator[str]:
        """Yields the DSN of a new database in which these pipelines are deployed, and drops it."""
        several = list(pipelines) if isinstance(pipelines, Iterable) else [pipelines]
        with self._database(self._template(several)) as dsn:
            yield dsn

    def close(self) -> None:
        """Drops the templates."""
        self._made.close()

    def _template(self, pipelines: list[Pipeline[Any]]) -> str:
        every = [*pipelines, *(each for pipeline in pipelines for each in pipeline.reactions.values())]
        wanted = {pipeline.name: Definition.of(pipeline) for pipeline in every}
        for definitions, name in self._templates:
            if definitions == wanted:
                return name
        empty = self._templates[0][1] if self._templates else None  # the first one has the schema, and no pipeline
        if empty is None and wanted:
            empty = self._template([])
        dsn = self._made.enter_context(self._database(empty))
        with psycopg.connect(dsn, autocommit=True) as conn:
            if empty is None:
                migrate(conn)
            deploy(conn, pipelines)
            name = conn.info.dbname
        self._templates.append((wanted, name))
        return name

    @contextmanager
    def _database(self, template: str | None) -> Iterator[str]:
        name = f"{self._prefix}_{next(self._numbers)}"
        at = conninfo_to_dict(self._dsn)
        maker = _Janitor if not self._is_durable else DatabaseJanitor
        with maker(
            host=str(at.get("host") or "localhost"),
            port=str(at.get("port") or 5432),
            user=str(at.get("user") or "postgres"),
            password=None if at.get("password") is None else str(at["password"]),
            dbname=name,
            template_dbname=template,
            maintenance_dbname=str(at.get("dbname") or "postgres"),
        ):
            yield _url({**at, "dbname": name})


class _Janitor(DatabaseJanitor):
    def _build_create_database_sql(self) -> sql.Composed:
        # Copies the files, which is quick where the server doesn't wait for the disk.
        made: sql.Composed = super()._build_create_database_sql()
        return made + sql.SQL(" STRATEGY file_copy") if self.template_dbname else made


def _url(at: dict[str, Any]) -> str:
    """Returns a DSN as a URL, which other tools take, too."""
    words = {name: str(value) for name, value in at.items() if value is not None}
    user, password, database = (words.pop(name, "") for name in ("user", "password", "dbname"))
    who = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    return f"postgresql://{who}@/{quote(database)}?{urlencode(words)}"
