"""`outbox worker --processes N`: one command, several processes, which live and end together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from kit.faults import WORKER, check_books, drained, held, open_gate, submit
from kit.pipelines import status_of, value
from kit.servers import Process, wait_for
from outbox.commands.processes import StopRequests
from outbox.definition import deploy

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]


@pytest.fixture
def family(spawn: Spawn, conn: Conn) -> Callable[..., tuple[Process, list[int]]]:
    """Start a worker of two processes; return it and, when both are at work, their pids."""

    def start(*options: str) -> tuple[Process, list[int]]:
        first = spawn(*WORKER, "--processes", "2", *options)
        wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.workers") == 2, what="both are at work")
        return first, pids(first)

    return start


def pids(first: Process) -> list[int]:
    return [child.pid for child in psutil.Process(first.popen.pid).children() if not ended(child.pid)]


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == "zombie"
    except psutil.NoSuchProcess:
        return True


def test_several_processes_share_the_work_and_stop_together(conn: Conn, app: Any, family: Any) -> None:
    first, both = family("--concurrency", "5")
    # More than one of them takes: what they hold until the gate is opened, each of them has a part of.
    submit(conn, app, *(f"slow{n}" for n in range(8)))
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.witness") == 8, what="both are at it")
    submit(conn, app, *(f"e{n}" for n in range(292)))
    open_gate(conn)
    wait_for(lambda: drained(conn), what="all is done")
    assert value(conn, "SELECT count(DISTINCT actor) FROM outbox.state_changes WHERE actor LIKE 'worker%%'") == 2
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    assert all(map(ended, both))
    assert value(conn, "SELECT count(*) FROM outbox.workers") == 0
    check_books(conn, 300)


def test_they_drain_and_end_with_0(conn: Conn, app: Any, spawn: Spawn) -> None:
    submit(conn, app, *(f"e{n}" for n in range(50)))
    assert spawn(*WORKER, "--processes", "3", "--drain").wait() == 0
    check_books(conn, 50)


@pytest.mark.parametrize("to_all", [False, True], ids=["to the first", "to each of them"])
def test_one_sigterm_lets_running_handlers_finish_whichever_process_gets_it(
    conn: Conn, app: Any, family: Any, to_all: bool
) -> None:
    first, both = family()
    submit(conn, app, "slow1", "slow2")
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.witness") == 2, what="both handlers run")
    for pid in (first.popen.pid, *(both if to_all else [])):  # a service manager tells every process of a service
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: first.text().count("stopping") == 2, what="both have heard it")
    open_gate(conn)
    assert first.wait() == 0, first.text()
    assert value(conn, "SELECT max(attempt) FROM outbox.witness") == 1, "none was interrupted"


def test_a_second_sigterm_stops_them_at_once(conn: Conn, app: Any, family: Any) -> None:
    first, _ = family()
    submit(conn, app, "slow1")
    wait_for(lambda: held(conn) == 1, what="the handler runs")
    first.send(signal.SIGTERM)
    wait_for(lambda: first.text().count("stopping") == 2, what="both have heard it")
    first.send(signal.SIGTERM)
    assert first.wait() == 1, "a handler was interrupted"
    assert held(conn) == 0


def test_one_that_is_killed_is_started_again(conn: Conn, app: Any, family: Any) -> None:
    first, both = family()
    os.kill(both[0], signal.SIGKILL)
    wait_for(lambda: len(new := pids(first)) == 2 and both[0] not in new, what="another one has started")
    assert "was killed by SIGKILL" in first.text()
    submit(conn, app, *(f"e{n}" for n in range(20)))
    wait_for(lambda: drained(conn), what="all is done")
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    check_books(conn, 20)


def test_poison_is_dead_after_its_attempts_and_the_processes_live_on(conn: Conn, app: Any, spawn: Spawn) -> None:
    conn.execute("UPDATE outbox.stages SET max_attempts = 2")
    submit(conn, app, "poison", *(f"e{n}" for n in range(20)))
    first = spawn(*WORKER, "--processes", "2", env={"ATTEMPTS": "2"})
    wait_for(lambda: drained(conn), what="the poison is dead and all others are done")
    assert value(conn, "SELECT attempts FROM outbox.dead_jobs") == 2
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    check_books(conn, 21, dead=1)


def test_when_the_first_process_is_killed_the_others_finish_and_end(conn: Conn, app: Any, family: Any) -> None:
    first, both = family()
    first.kill9()
    wait_for(lambda: all(map(ended, both)), what="they end too")
    assert value(conn, "SELECT count(*) FROM outbox.workers") == 0, "in order"


def test_when_the_first_process_is_killed_those_that_hang_in_an_import_end(
    conn: Conn, spawn: Spawn, tmp_path: Path
) -> None:
    (tmp_path / "hanging_import.py").write_text("import time\nwhile True:\n    time.sleep(1)\n")
    first = spawn("worker", "--app", "hanging_import:app", "--processes", "2", env={"PYTHONPATH": str(tmp_path)})
    wait_for(lambda: len(pids(first)) == 2, what="both have started")
    both = pids(first)
    first.kill9()
    wait_for(lambda: all(map(ended, both)), what="they end too")


def test_what_can_not_run_is_said_and_ends_them_all(conn: Conn, app: Any, spawn: Spawn) -> None:
    conn.execute("DELETE FROM outbox.pipelines")
    first = spawn(*WORKER, "--processes", "2")
    assert first.wait() == 1
    assert "outbox deploy" in first.text()


ODD = ["worker", "--app", "apps.hanging:app", "--processes", "2"]


@pytest.fixture
def odd(conn: Conn) -> Callable[[str], None]:
    """Submit an entity whose handler does what its name says."""
    from apps.hanging import app

    deploy.deploy(conn, app)

    def submit(entity: str, status: str = "ASYNC") -> None:
        conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('h', %s)", (entity,))
        conn.execute("UPDATE outbox.workflow_states SET current_status = %s WHERE entity_id = %s", (status, entity))

    return submit


def test_any_end_that_was_not_asked_for_is_made_good(
    conn: Conn, odd: Callable[..., None], spawn: Spawn, tmp_path: Path
) -> None:
    soon = tmp_path / "soon.py"  # each restart would wait for twice as long as the one before
    soon.write_text(
        "from outbox import cli\nfrom outbox.commands import processes\n"
        "processes.FIRST_WAIT = processes.LONGEST_WAIT = 0.05\ncli.main()\n"
    )
    first = spawn(*ODD, program=[str(soon)], env={"ATTEMPTS": "1", "TIMEOUT": "0.2", "LOST_AFTER": "0.2"})
    for code in (0, 1, 2, 7):
        odd(f"exit{code}")
    dead = "SELECT count(*) FROM outbox.dead_jobs"
    wait_for(lambda: value(conn, dead) == 4 or not first.running, what="each of them has ended a process")
    odd("hang1", "SYNC")
    odd("hang2", "SYNC")
    wait_for(lambda: value(conn, dead) == 6 or not first.running, what="both hang")
    odd("good1")
    wait_for(lambda: status_of(conn, "good1") == "DONE" or not first.running, what="the work goes on")
    wait_for(lambda: len(pids(first)) == 2 or not first.running, what="there are two again")
    first.send(signal.SIGTERM)
    assert first.wait() in (0, 1), first.text()
    assert first.text().count("another one starts") >= 4


def test_the_end_of_a_process_that_is_not_its_own_is_ignored(
    conn: Conn, odd: Callable[..., None], spawn: Spawn, tmp_path: Path
) -> None:
    """As in a container, where orphans come to the first process; and under a shell that has left one behind."""
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import ctypes, os, subprocess, sys\n"
        "assert ctypes.CDLL(None).prctl(36, 1) == 0  # PR_SET_CHILD_SUBREAPER\n"
        "subprocess.Popen(['sh', '-c', 'exit 3'])\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'outbox', *sys.argv[1:]])\n"
    )
    first = spawn(*ODD, program=[str(starter)])
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.workers") == 2 or not first.running)
    odd("orphan1")
    wait_for(lambda: status_of(conn, "orphan1") == "DONE" or not first.running, what="it leaves an orphan behind")
    wait_for(lambda: len(pids(first)) == 2 or not first.running, what="the orphan has ended")
    odd("good1")
    wait_for(lambda: status_of(conn, "good1") == "DONE" or not first.running, what="the work goes on")
    first.send(signal.SIGTERM)
    assert first.wait() == 0, first.text()


# Requests to stop, as one of the processes hears them.


@pytest.mark.parametrize(
    ("requests", "stops"),
    [
        ("s", 1),
        ("p", 1),
        ("sp", 1),
        ("ps", 1),
        ("spsp", 2),
        ("sspp", 2),
        ("sps", 2),
        ("pps", 2),
        ("e", 1),
        ("se", 1),
        ("pe", 1),
        ("ppe", 2),
    ],
)
def test_a_request_that_comes_by_signal_and_by_pipe_counts_once(requests: str, stops: int) -> None:
    """s: a signal, p: a byte in the pipe, e: its end."""

    async def play() -> int:
        readable, writable = os.pipe()
        heard: list[str] = []
        expected = 0
        made = StopRequests(lambda: heard.append("stop"), logging.getLogger("outbox.worker"))
        made.listen(readable)
        for request in requests:
            if request == "s":
                os.kill(os.getpid(), signal.SIGTERM)
            elif request == "p":
                os.write(writable, b".")
            else:
                os.close(writable)
            expected += request != "e" or "p" not in requests
            while sum(made._requests.values()) < expected:
                await asyncio.sleep(0.001)
        if "e" not in requests:
            os.close(writable)
        await asyncio.sleep(0.01)  # the end of the pipe is no further request
        os.close(readable)
        return len(heard)

    assert asyncio.run(play()) == stops
