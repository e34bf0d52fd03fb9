"""Tests kill point K12: kills `outbox migrate` between two transactions and reruns it until the schema is complete."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import psycopg

from kit.servers import PostgresServer
from outbox.database import schema

COMMAND = [sys.executable, "-m", "outbox", "migrate"]
TABLES = """
    SELECT array_agg(c.relname || ':' || c.relkind::text ORDER BY c.relname) FROM pg_class AS c
    WHERE c.relnamespace = 'outbox'::regnamespace
"""


def kill(times: int, seed: int) -> int:
    """Kills that many migrations, each of a database of its own; returns how many. Raises if one can't go on."""
    dice = random.Random(f"migrating/{seed}")
    server = PostgresServer()
    server.start()
    try:
        whole = _migrated(server, "whole", None)
        for number in range(times):
            found = _migrated(server, f"killed_{number}", dice.randint(1, len(schema.transactions()) - 1))
            assert found == whole, f"killed_{number} is not whole"
    finally:
        server.remove()
    return times


def _migrated(server: PostgresServer, name: str, kill_at: int | None) -> object:
    with server.admin() as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    env = {**os.environ, "OUTBOX_DSN": server.dsn(name)}
    if kill_at is not None:
        killed = subprocess.run(
            COMMAND, env={**env, "OUTBOX_KILL_AT": f"K12:{kill_at}"}, capture_output=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    subprocess.run(COMMAND, env=env, check=True, capture_output=True)
    with psycopg.connect(server.dsn(name)) as conn:
        row = conn.execute(TABLES.encode()).fetchone()
    with server.admin() as admin:
        admin.execute(f"DROP DATABASE {name}".encode())
    assert row is not None
    return row[0]
