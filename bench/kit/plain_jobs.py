"""Runs a typical job table: a row per job, claimed with SKIP LOCKED, deleted when done, inserted for the next stage.

`python -m bench.kit.plain_jobs DSN FILE` works on it until SIGTERM, and writes its notes (notes.py) into the file.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from threading import Event

import psycopg

from .app import STAGES
from .notes import Notes

BATCH = 200
PAUSE = 0.02

TABLE = """
    CREATE TABLE plain_jobs (
        id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        entity_id  text NOT NULL,
        status     text NOT NULL,
        payload    jsonb NOT NULL,
        running    boolean NOT NULL DEFAULT false,
        created_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE INDEX plain_jobs_ready ON plain_jobs (id) WHERE NOT running;
"""
# MATERIALIZED for the same reason as in the engine's claim: otherwise it could take more than its limit.
CLAIM = f"""
    WITH picked AS MATERIALIZED (
        SELECT id FROM plain_jobs WHERE NOT running ORDER BY id LIMIT {BATCH} FOR UPDATE SKIP LOCKED
    )
    UPDATE plain_jobs AS j SET running = true FROM picked WHERE j.id = picked.id
    RETURNING j.id, j.entity_id, j.status, j.payload::text
"""
DELETE = "DELETE FROM plain_jobs WHERE id = ANY (%s)"
NEXT = """
    INSERT INTO plain_jobs (entity_id, status, payload)
    SELECT n.entity_id, n.status, n.payload::jsonb
    FROM unnest(%s::text[], %s::text[], %s::text[]) AS n (entity_id, status, payload)
"""
AFTER = {status: to for _, status, to in STAGES}
LAST = STAGES[-1][2]


def step(conn: psycopg.Connection, notes: Notes) -> bool:
    """Claims a batch and finishes it, each in a transaction of its own. Returns False if there was no job."""
    asked = time.monotonic()
    jobs = conn.execute(CLAIM).fetchall()
    notes.claims.append((time.time(), (time.monotonic() - asked) * 1000, len(jobs)))
    if not jobs:
        return False
    goes_on = [(entity, AFTER[status], payload) for _, entity, status, payload in jobs if AFTER[status] != LAST]
    with conn.transaction():
        conn.execute(DELETE, ([job[0] for job in jobs],))
        if goes_on:
            conn.execute(NEXT, tuple(map(list, zip(*goes_on, strict=True))))
    notes.steps.append((time.time(), len(jobs)))
    return True


def work(dsn: str) -> Notes:
    notes, over = Notes(), Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    with psycopg.connect(dsn, autocommit=True) as conn:
        while not over.is_set():
            if not step(conn, notes):
                over.wait(PAUSE)
    return notes


if __name__ == "__main__":
    work(sys.argv[1]).write(Path(sys.argv[2]))
