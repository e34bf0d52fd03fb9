"""Runs one subject's turn: its process, the service, and what else it needs. Then checks the books of all of them."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from kit.broker import Broker
from kit.servers import free_port

from ..kit import environments
from ..kit.database import Server, address
from ..peers.job import SCHEMA, STATUS_AFTER
from .service import BOOKS, answers
from .work import BEGAN, PAUSE, path

HERE = Path(__file__).parent
TIMEOUT = 300
START_UP = 120
STATEMENT = re.compile(r" LOG:  (?:statement|execute [^:]*): ")
"""A line of Postgres' log for each statement, with log_statement = all."""


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
        port = using.enter_context(_service(seed))
        settings, servers = {}, list[int]()
        if subject.server == "RabbitMQ" and broker:
            settings, servers = {"OUTBOX_AMQP_URL": broker.new_url()}, [broker.pid]
        elif subject.server == "Temporal":
            at, pid = using.enter_context(_temporal(subject))
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
        process = using.enter_context(_started(command, settings))
        _require(_line(process, START_UP).strip() == BEGAN, f"{subject.title} has not begun")
        before = busy([postmaster]), busy(servers), (folder / "log").stat().st_size
        done = json.loads(_line(process, TIMEOUT))
        process.wait(30)
        after = busy([postmaster]), busy(servers)
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


def busy(pids: list[int]) -> float:
    """Returns the CPU seconds of processes and of all that they have started, also of those that have ended."""
    found = 0.0
    for pid in pids:
        parent = psutil.Process(pid)
        for each in (parent, *parent.children(recursive=True)):
            try:
                times = each.cpu_times()
            except psutil.NoSuchProcess:
                continue  # its parent has its time now
            found += times.user + times.system + times.children_user + times.children_system
    return found


def _check(
    subject: Subject, conn: psycopg.Connection, workflows: int, ended: dict[int, float], asked: dict[str, list[float]],
    seed: int,
) -> None:  # fmt: skip
    """Raises unless each workflow has ended, and each of its steps has asked as often as it had to."""
    paths = [path(workflow, stage) for workflow in range(workflows) for stage in STATUS_AFTER]
    wrong = [each for each in paths if len(asked.get(each, ())) != len(answers(seed, each))]
    _require(not wrong and asked.keys() == {*paths}, f"{subject.title} has asked too often or too seldom: {wrong[:5]}")
    _require(ended.keys() == {*range(workflows)}, f"{subject.title} has ended {len(ended)} of {workflows} workflows")
    if subject.module == "outbox":
        question = (
            "SELECT (SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'COMPLETED'),"
            " (SELECT count(*) FROM outbox.jobs) + (SELECT count(*) FROM outbox.dead_jobs)"
        )
    else:
        question = (
            f"SELECT count(*) FILTER (WHERE status = 'COMPLETED' AND steps = {len(STATUS_AFTER)}), 0 FROM workflows"
        )
    books = conn.execute(question.encode()).fetchone()
    expected = (workflows if subject.uses_postgres else 0, 0)
    _require(books == expected, f"the books of {subject.title} are wrong: completed, left: {books}, not {expected}")


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise click.ClickException(otherwise)


def _books(port: int) -> dict[str, list[float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{BOOKS}", timeout=30) as answer:
        found: dict[str, list[float]] = json.load(answer)
    return found


def _statements(log: Path, since: int) -> int:
    with log.open("rb") as file:
        file.seek(since)
        return len(STATEMENT.findall(file.read().decode(errors="replace")))


@contextmanager
def _service(seed: int) -> Iterator[int]:
    with _started([sys.executable, "-m", "bench.calls.service", str(seed)], {}) as process:
        yield int(_line(process, START_UP))


@contextmanager
def _temporal(subject: Subject) -> Iterator[tuple[str, int]]:
    """Starts the development server that the package brings, with its data in a file."""
    program = Path(environments.python_of(subject.requirements)).with_name("temporal")
    at = f"127.0.0.1:{(port := free_port())}"
    with tempfile.TemporaryDirectory(
        prefix="outbox-temporal-", dir=os.environ.get("OUTBOX_BENCH_DIR", "/tmp")
    ) as folder:
        options = ["--headless", "--ip", "127.0.0.1", "--port", str(port), "--log-level", "error"]
        command = [str(program), "server", "start-dev", *options, "--db-filename", f"{folder}/temporal.db"]
        with _started(command, {"HOME": folder}) as process:
            ready = [str(program), "operator", "cluster", "health", "--address", at]
            _wait(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, "Temporal's server")
            yield at, process.pid


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_UP
    while not condition():
        _require(time.monotonic() < deadline, f"{what} has not started")
        time.sleep(0.2)


@contextmanager
def _started(command: list[str], settings: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=environments.ROOT, env=environments.variables() | settings, stdout=subprocess.PIPE,
            stderr=errors, text=True,
        )  # fmt: skip
        try:
            yield process
        except click.ClickException as error:
            errors.seek(0)
            raise click.ClickException(f"{error.message}\n{' '.join(command)}: {errors.read()[-3000:]}") from error
        finally:
            process.kill()
            process.wait()


def _line(process: subprocess.Popen[str], timeout: float) -> str:
    """Returns the next line that a process writes. Raises if none comes in time, or if it ends instead."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], timeout)[0]:
        raise click.ClickException(f"not within {timeout:g} s")
    line = process.stdout.readline()
    if not line:
        raise click.ClickException("it has ended")
    return line


def packages(subject: Subject) -> dict[str, Any]:
    """Returns the versions that a subject runs with. Makes its environment."""
    return {} if subject.requirements is None else environments.make(subject.requirements, subject.title)
