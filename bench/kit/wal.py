"""Weighs what a run has written: WAL records and bytes, and how many updates of workflows have touched no index."""

from __future__ import annotations

import re
import subprocess

import click
import psycopg

from .database import Server

HERE = "SELECT pg_current_wal_flush_lsn()::text"
FILES = """
    SELECT current_setting('data_directory') || '/pg_wal/' || pg_walfile_name(%s::pg_lsn), pg_walfile_name(%s::pg_lsn)
"""
UPDATES = "SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_all_tables WHERE relid = 'outbox.workflow_states'::regclass"


class Scale:
    """Weighs what is written from `begin` to `end`. Images of whole pages, which a checkpoint causes, don't count."""

    def __init__(self, postgres: Server, dsn: str) -> None:
        self._postgres, self._dsn = postgres, dsn
        self._from = ""

    def begin(self) -> None:
        (self._from,) = self._asked(HERE)

    def end(self, steps: int) -> dict[str, float]:
        """Returns the figures of a step. All sessions have ended: Postgres counts their updates when they do."""
        (until,) = self._asked(HERE)
        files = self._asked(FILES, self._from, until)
        program = self._postgres.programs / "pg_waldump"
        command = [str(program), "--stats", f"--start={self._from}", f"--end={until}", *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        total = re.search(r"^Total +(\d+) +(\d+) ", done.stdout, re.MULTILINE)
        if done.returncode or total is None:
            raise click.ClickException(f"pg_waldump: {done.stderr or done.stdout}")
        with psycopg.connect(self._dsn) as conn:
            hot, updates = conn.execute(UPDATES).fetchone() or (0, 0)
        return {
            "WAL records/step": int(total[1]) / steps,
            "WAL bytes/step": int(total[2]) / steps,
            "HOT updates of workflows, %": 100 * hot / max(1, updates),
        }

    def _asked(self, question: str, *params: str) -> tuple[str, ...]:
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            return conn.execute(question.encode(), params or None).fetchone() or ()
