"""Runs one subject's turn: its process, the service, and what else it needs. Then checks the books of all of them."""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from kit.broker import Broker

from ..kit import environments
from ..kit.database import Server, address
from ..peers.job import SCHEMA, STATUS_AFTER
from . import processes
from .processes import START_UP, require
from .service import BOOKS, answers
from .work import BEGAN, PAUSE, path

HERE = Path(__file__).parent
TIMEOUT = 300
STATEMENT = re.compile(r" LOG:  (?:statement|execute [^:]*): ")
"""A line of Postgres' log for each statement, with log_statement = all."""

OUR_BOOKS = """
    SELECT (SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'COMPLETED'),
           (SELECT count(*) FROM outbox.state_changes),
           (SELECT count(*) FROM outbox.jobs) + (SELECT count(*) FROM outbox.dead_jobs)
"""
THEIR_BOOKS = "SELECT count(*) FILTER (WHERE status = 'COMPLETED'), sum(steps), 0 FROM workflows"
"""Completed workflows, changes of their status, and jobs that are left."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A module of this folder. `requirements` is the file of its versions; None: the packages of this process."""

    title: str
    module: str
    requirements: Path | None
    server: str = ""
    """What it needs besides Postgres: "RabbitMQ" or "Temporal"."""

    uses_postgres: bool = True


SUBJECTS = {
    "alone": Subject("asyncio alone", "alone", None, uses_postgres=False),
    "outbox": Subject("Outbox", "outbox", None),
    "pgqueuer": Subject("PgQueuer", "pgqueuer", HERE.parent / "peers" / "pgqueuer.txt"),
    "procrastinate": Subject("procrastinate", "procrastinate", HERE.parent / "peers" / "procrastinate.txt"),
    "dbos": Subject("DBOS", "dbos", HERE.parent / "peers" / "dbos.txt"),
    "celery": Subject("Celery", "celery", HERE / "celery.txt", server="RabbitMQ"),
    "temporal": Subject("Temporal", "temporal", HERE / "temporal.txt", server="Temporal"),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """What one run of a subject took. Times are in seconds, memory in MB."""

    seconds: float
    own: list[float]
    """For each workflow: its time beyond the answers of the service, and the pauses that it asked for."""

    cpu: float
    postgres_cpu: float
    server_cpu: float
    memory: float
    statements: int
    """Counted only if the run was told to."""


def turn(postgres: Server, subject: Subject, workflows: int, seed: int, broker: Broker | None, counts: bool) -> Turn:
    """Runs all workflows of a subject in one process. Raises unless each of its steps was made once.

    With `counts`, Postgres logs each statement, which takes time: only their number means something then.
    """
    with ExitStack() as using:
        dsn = using.enter_context(postgres.database())
        port = using.enter_context(processes.service(seed))
        settings, servers = {}, list[int]()
        if subject.server == "RabbitMQ" and broker:
            settings, servers = {"OUTBOX_AMQP_URL": broker.new_url()}, [broker.pid]
        elif subject.server == "Temporal":
            program = Path(environments.python_of(subject.requirements)).with_name("temporal")
            at, pid = using.enter_context(processes.temporal(program))
            settings, servers = {"TEMPORAL_ADDRESS": at}, [pid]
        conn = using.enter_context(psycopg.connect(dsn, autocommit=True))
        conn.execute(SCHEMA.encode())
        conn.execute("INSERT INTO workflows SELECT n, 'RECEIVED', 0 FROM generate_series(0, %s - 1) AS n", (workflows,))
        if counts:
            name = sql.Identifier(str(conn.info.dbname))
            conn.execute(sql.SQL("ALTER DATABASE {} SET log_statement = 'all'").format(name))
        folder = Path(str(conninfo_to_dict(dsn)["host"]))
        postmaster = int((folder / "postmaster.pid").read_text().splitlines()[0])
        command = [
            environments.python_of(subject.requirements), "-m", f"bench.calls.{subject.module}", address(dsn),
            str(port), str(workflows),
        ]  # fmt: skip
        process = using.enter_context(processes.started(command, settings))
        require(processes.line(process, START_UP).strip() == BEGAN, f"{subject.title} has not begun")
        before = processes.busy([postmaster]), processes.busy(servers), (folder / "log").stat().st_size
        processes.go_on(process)
        done = json.loads(processes.line(process, TIMEOUT))
        process.wait(30)
        after = processes.busy([postmaster]), processes.busy(servers)
        statements = _statements(folder / "log", before[2]) if counts else 0
        ended = {int(workflow): float(seconds) for workflow, seconds in done["ended"].items()}
        asked = _books(port)
        _check(subject, conn, workflows, ended, asked, seed)
    return Turn(
        max(ended.values()),
        [ended[workflow] - waited(asked, workflow) for workflow in range(workflows)],
        done["cpu"],
        after[0] - before[0],
        after[1] - before[1],
        done["peak"],
        statements,
    )


def waited(asked: dict[str, list[float]], workflow: int) -> float:
    """Returns the seconds that a workflow had to wait: for the service's answers, and in its pauses."""
    tries = [asked[path(workflow, stage)] for stage in STATUS_AFTER]
    return sum(sum(took) + (len(took) - 1) * PAUSE for took in tries)


def _check(
    subject: Subject, conn: psycopg.Connection, workflows: int, ended: dict[int, float], asked: dict[str, list[float]],
    seed: int,
) -> None:  # fmt: skip
    """Raises unless each workflow has ended, and each of its steps has asked as often as it had to."""
    paths = [path(workflow, stage) for workflow in range(workflows) for stage in STATUS_AFTER]
    wrong = [each for each in paths if len(asked.get(each, ())) != len(answers(seed, each))]
    require(not wrong and asked.keys() == {*paths}, f"{subject.title} has asked too often or too seldom: {wrong[:5]}")
    require(ended.keys() == {*range(workflows)}, f"{subject.title} has ended {len(ended)} of {workflows} workflows")
    mine = subject.module == "outbox"
    books = conn.execute((OUR_BOOKS if mine else THEIR_BOOKS).encode()).fetchone()
    completed = workflows if subject.uses_postgres else 0
    changes = completed * (len(STATUS_AFTER) + 1 if mine else len(STATUS_AFTER))  # our history has the submit, too
    require(
        books == (completed, changes, 0),
        f"the books of {subject.title} are wrong: completed, changes, left: {books} of {workflows} workflows",
    )


def _books(port: int) -> dict[str, list[float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{BOOKS}", timeout=30) as answer:
        found: dict[str, list[float]] = json.load(answer)
    return found


def _statements(log: Path, since: int) -> int:
    with log.open("rb") as file:
        file.seek(since)
        return len(STATEMENT.findall(file.read().decode(errors="replace")))


def packages(subject: Subject) -> dict[str, Any]:
    """Returns the versions that a subject runs with. Makes its environment."""
    return {} if subject.requirements is None else environments.make(subject.requirements, subject.title)
