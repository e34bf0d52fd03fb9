"""Measures what an idle worker costs: statements, CPU and memory, its own and those of its sessions in Postgres.

`python -m bench.idle --help`
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import psutil
import psycopg

from .kit import report
from .kit.database import busy_seconds, machine, server, worker
from .kit.steps import submitted, wait_until

WARM_UP = 200
POSTS = "bench.kit.app:posts"
IDLE = "SELECT coalesce(bool_and(idle), false) AND NOT EXISTS (SELECT FROM outbox.jobs) FROM outbox.workers"
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'outbox%%'"
TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"


@click.command()
@click.option("--seconds", default=20.0, show_default=True, help="How long the idle worker is watched in a round.")
@click.option("--settle", default=11.0, show_default=True, help="Seconds before: Postgres counts up to 10 s late.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(seconds: float, settle: float, rounds: int, json_file: Path | None) -> None:
    """Watch a worker that has done some work and has none left. Each round has a fresh database and a fresh worker."""
    found: dict[str, list[float]] = {}
    with server() as postgres:
        for number in range(1, rounds + 1):
            report.progress(f"round {number} of {rounds}: a worker for {seconds:g} s")
            with postgres.database() as dsn:
                for name, value in watched(postgres.dsn, dsn, seconds, settle).items():
                    found.setdefault(name, []).append(value)
        where = machine(postgres.dsn)
    figures = {name: report.spread(values) for name, values in found.items()}
    report.show("idle", {"seconds": seconds, "rounds": rounds}, figures, where, json_file)


def watched(
    admin_dsn: str, dsn: str, seconds: float, settle: float, app: str = POSTS, work: Callable[[], object] | None = None
) -> dict[str, float]:
    """Returns the figures of one worker. It queries from another database, so only the worker counts in its own.

    `work` gives the worker what it has done before, and returns when that is done; None: a few workflows of POSTS.
    """
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with worker(dsn, app) as process, psycopg.connect(admin_dsn, autocommit=True) as conn:
        wait_until(dsn, IDLE, 60)
        submitted(dsn, WARM_UP) if work is None else work()
        wait_until(dsn, IDLE, 60)
        time.sleep(settle)
        sessions = [pid for (pid,) in conn.execute(SESSIONS, (database,))]
        started = time.monotonic()
        statements, own, theirs = counted(conn, database), busy_seconds(process.pid), sum(map(busy_seconds, sessions))
        time.sleep(seconds)
        while counted(conn, database) == statements:  # Postgres counts late, and nothing counted gives no rate
            time.sleep(0.1)
        took = time.monotonic() - started
        statements = counted(conn, database) - statements
        own, theirs = busy_seconds(process.pid) - own, sum(map(busy_seconds, sessions)) - theirs
        memory = psutil.Process(process.pid).memory_full_info()
        if process.poll() is not None or [pid for (pid,) in conn.execute(SESSIONS, (database,))] != sessions:
            raise click.ClickException("the worker has ended, or has other sessions than before")
    return {
        "statements/s": statements / took,
        "CPU of the process, % of a core": own / took * 100,
        "CPU of its sessions in Postgres, % of a core": theirs / took * 100,
        "sessions": len(sessions),
        "resident memory (RSS), MB": memory.rss / 2**20,
        "its share of it (PSS), MB": memory.pss / 2**20,
    }


def counted(conn: psycopg.Connection, database: object) -> int:
    """Returns the transactions of a database since it was made. Each statement of an idle worker is one."""
    (count,) = conn.execute(TRANSACTIONS, (database,)).fetchone() or (0,)
    return int(count)


if __name__ == "__main__":
    main()
