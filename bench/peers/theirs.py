"""Runs a peer's turn: a process in its own environment. Then checks what it left in the application's tables."""

from __future__ import annotations

import json
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import psycopg

from kit.broker import Broker

from ..kit import environments
from ..kit.database import address
from .job import HOLD, SCHEMA, STATUS_AFTER

HERE = Path(__file__).parent
TIMEOUT = 300
SETTLE = 5.0
"""Seconds that a second worker of a peer has to start up: the peers have no common way to report that they did."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A module of this folder. `batches` means that it handles many jobs in a transaction.

    `part` is its share of the workflows: with all of them, a run of a slow peer would take minutes.
    """

    title: str
    module: str
    part: float
    requirements: str
    needs_broker: bool = False
    batches: bool = False


PEERS = {
    "pgqueuer": Peer("PgQueuer", "pgqueuer", 0.25, "pgqueuer"),
    "faststream": Peer("faststream-outbox", "faststream", 0.25, "faststream"),
    "awa": Peer("awa-pg", "awa", 0.25, "awa"),
    "procrastinate": Peer("procrastinate", "procrastinate", 0.05, "procrastinate"),
    "dbos": Peer("DBOS", "dbos", 0.05, "dbos"),
    "rabbitmq": Peer("RabbitMQ by hand", "rabbitmq", 0.25, "rabbitmq", needs_broker=True),
    "rabbitmq-batch": Peer(
        "RabbitMQ by hand, batches", "rabbitmq_batch", 1.0, "rabbitmq", needs_broker=True, batches=True
    ),
}


def environment(peer: Peer) -> dict[str, str]:
    """Makes the peer's environment, unless it exists with these versions. Returns the pinned versions."""
    return environments.make(requirements(peer), peer.title)


def requirements(peer: Peer) -> Path:
    return HERE / f"{peer.requirements}.txt"


@contextmanager
def rabbitmq(needed: bool) -> Iterator[Broker | None]:
    """Starts a node in a temporary folder, if it is needed. Removes it and its data at the end."""
    if not needed:
        yield None
        return
    broker = Broker()
    try:
        yield broker.start()
    finally:
        broker.remove()


def rate(dsn: str, peer: Peer, kind: str, workflows: int, url: str | None) -> float:
    """Returns the jobs/s of one process. Raises unless every workflow ended and each of its steps was made once."""
    jobs = workflows * len(STATUS_AFTER)
    if kind == "no-op":
        workflows = jobs  # with one job each
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(SCHEMA.encode())
        conn.execute("INSERT INTO workflows SELECT n, 'RECEIVED', 0 FROM generate_series(0, %s - 1) AS n", (workflows,))
        done = json.loads(_run(_command(peer, kind, dsn, workflows), OUTBOX_AMQP_URL=url or "").splitlines()[-1])
        books = conn.execute(
            "SELECT count(*) FILTER (WHERE status = 'COMPLETED' AND steps = %s),"
            " (SELECT count(*) FROM effects), (SELECT count(DISTINCT (workflow, stage)) FROM effects) FROM workflows",
            (len(STATUS_AFTER),),
        ).fetchone()
    effects = jobs if kind == "writes" else 0
    if books != (0 if kind == "no-op" else workflows, effects, effects) or done["calls"] != jobs:
        raise click.ClickException(
            f"the books of {peer.title} ({kind}) are wrong: of {workflows:,} workflows {books}, calls {done['calls']:,}"
        )
    return jobs / float(done["seconds"])


def recovery(dsn: str, peer: Peer, url: str | None, patience: float) -> float | None:
    """Returns the seconds from `kill -9` of a worker to the next attempt at its job, or None if none came in time."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(SCHEMA.encode())
    env = {"OUTBOX_AMQP_URL": url or ""}
    with _started(_command(peer, HOLD, dsn, 1), env) as holder:
        if _line(holder, TIMEOUT) is None:
            raise click.ClickException(f"{peer.title} has not begun its job within {TIMEOUT} s")
        with _started(_command(peer, HOLD, dsn, 0), env) as heir:
            if _line(heir, SETTLE) is not None:
                raise click.ClickException(f"the second worker of {peer.title} took the job of one that lives")
            holder.kill()
            killed = time.monotonic()
            begun = _line(heir, patience)
    return None if begun is None else float(begun) - killed


def _command(peer: Peer, kind: str, dsn: str, workflows: int) -> list[str]:
    return [
        environments.python_of(requirements(peer)),
        "-m",
        f"bench.peers.{peer.module}",
        kind,
        address(dsn),
        str(workflows),
    ]


@contextmanager
def _started(command: list[str], settings: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        cwd=environments.ROOT,
        env=environments.variables() | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _line(process: subprocess.Popen[str], timeout: float) -> str | None:
    """Returns the next line that a process writes, or None if none comes in time. Raises if it ends instead."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], timeout)[0]:
        return None
    line = process.stdout.readline()
    if not line:
        raise click.ClickException(f"it ended: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]
    return line


def _run(command: list[str], **settings: str) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=environments.ROOT,
            env=environments.variables() | settings,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise click.ClickException(f"not within {TIMEOUT} s: {' '.join(command)}") from None
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {done.stderr[-3000:]}")
    return done.stdout
