"""Starts the bench's own Postgres: the bundled one, with default settings and fsync. Each run gets a new database."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from outbox.database import embedded, migrations
from outbox.definition import deploy
from outbox.engine.batch import BATCH
from outbox.engine.committer import LINGER
from outbox.engine.lane import ASYNC_CONCURRENCY, MAX_CLAIM

from .app import SHAPES

LIBRARIES = ("outbox-engine", "psycopg", "pydantic", "pika")
ENGINE = {"claim": MAX_CLAIM, "concurrency": ASYNC_CONCURRENCY, "commit": BATCH, "commit lingers ms": LINGER * 1000}
"""The most jobs that a worker claims, runs at once in a stage, and commits together, unless a bench says otherwise."""

PAYLOAD = "about 100 bytes of JSON, unless a setting or the name of a figure says otherwise"

MEGABYTES = """
    SELECT (coalesce(sum(pg_total_relation_size(relid)), pg_total_relation_size(%(table)s)) / 2^20)::float8
    FROM pg_partition_tree(%(table)s)
"""

TEMPLATE = "bench_template"
"""The database that each run gets a copy of."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `programs` is the folder of its pgbench."""

    dsn: str
    programs: Path

    @contextmanager
    def database(self, template: str = TEMPLATE) -> Iterator[str]:
        """Yields the DSN of a fresh database with all pipelines deployed, after flushing what earlier runs wrote.

        It is a copy of `template`, which must have no sessions meanwhile.
        """
        name = f"bench_{next(_numbers)}"
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            admin.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )
            try:
                admin.execute("CHECKPOINT")
                yield make_conninfo(self.dsn, dbname=name)
            finally:
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def checkpoint(self) -> None:
        """Flushes what was written so far to disk."""
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            admin.execute("CHECKPOINT")


@contextmanager
def server() -> Iterator[Server]:
    """Starts a server in a temporary folder, below OUTBOX_BENCH_DIR or /tmp. Removes it and its data at the end."""
    with tempfile.TemporaryDirectory(prefix="outbox-bench-", dir=os.environ.get("OUTBOX_BENCH_DIR", "/tmp")) as folder:
        Path(folder).chmod(0o755)
        with embedded.server(Path(folder)) as dsn, psycopg.connect(dsn) as conn:
            programs = conn.execute("SELECT setting FROM pg_config() WHERE name = 'BINDIR'").fetchone()
            assert programs is not None
            _make_template(dsn)
            yield Server(dsn, Path(programs[0]))


def _make_template(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    template = make_conninfo(dsn, dbname=TEMPLATE)
    migrations.apply(template)
    with psycopg.connect(template, autocommit=True) as conn:
        for shape in SHAPES:
            deploy.deploy(conn, shape.pipeline)
        conn.execute("CREATE TABLE booked (entity text, stage text)")


@contextmanager
def worker(dsn: str, app: str = "bench.kit.app:posts") -> Iterator[subprocess.Popen[bytes]]:
    """Runs `outbox worker` as a process of its own."""
    with engine(dsn, "worker", "--app", app) as process:
        yield process


@contextmanager
def engine(dsn: str, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command of `outbox` as a process of its own. `settings` are added to its environment."""
    command = [sys.executable, "-m", "outbox", *arguments]
    process = subprocess.Popen(command, env=environment(dsn, **settings), stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def environment(dsn: str, **settings: str) -> dict[str, str]:
    """Returns the environment in which a command of `outbox` works on this database."""
    return {**os.environ, "OUTBOX_DSN": dsn, "PYTHONPATH": str(Path(__file__).parents[2]), **settings}


def address(dsn: str) -> str:
    """Returns the DSN in the one form that libpq, asyncpg, SQLAlchemy and sqlx all understand, sockets included."""
    parts = conninfo_to_dict(dsn)
    query = "&".join(f"{name}={parts[name]}" for name in ("host", "port", "user", "password") if parts.get(name))
    return f"postgresql:///{parts['dbname']}?{query}"


def megabytes(conn: psycopg.Connection, table: str) -> float:
    """Returns the size of a table in MB, with its partitions and indexes."""
    (found,) = conn.execute(MEGABYTES, {"table": table}).fetchone() or (0.0,)
    return float(found)


def busy_seconds(pid: int) -> float:
    """Returns the CPU seconds that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def machine(dsn: str) -> Mapping[str, Any]:
    """Returns the machine, versions and settings, without which a figure means nothing."""
    settings = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size")
    with psycopg.connect(dsn) as conn:
        rows = [conn.execute("SELECT current_setting(%s)", (name,)).fetchone() for name in settings]
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), "?")
    return {
        "cores": os.cpu_count(), "cpu": model, "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GB",
        "system": platform.platform(), "python": platform.python_version(),
        **_versions(),
        "postgres": {n: row[0] for n, row in zip(settings, rows, strict=True) if row},
        "engine": ENGINE, "payload": PAYLOAD,
    }  # fmt: skip


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
