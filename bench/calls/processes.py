"""Starts the processes of a run: the service, a subject, Temporal's server. Reads what they say and what they use."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psutil

from kit.servers import free_port

from ..kit import environments

START_UP = 300
"""Seconds for a process to be ready: a subject submits all workflows before it begins."""


@contextmanager
def service(seed: int) -> Iterator[int]:
    with started([sys.executable, "-m", "bench.calls.service", str(seed)], {}) as process:
        yield int(line(process, START_UP))


@contextmanager
def temporal(program: Path) -> Iterator[tuple[str, int]]:
    """Starts the development server that the package brings, with its data in a file."""
    at = f"127.0.0.1:{(port := free_port())}"
    with tempfile.TemporaryDirectory(
        prefix="outbox-temporal-", dir=os.environ.get("OUTBOX_BENCH_DIR", "/tmp")
    ) as folder:
        options = ["--headless", "--ip", "127.0.0.1", "--port", str(port), "--log-level", "error"]
        command = [str(program), "server", "start-dev", *options, "--db-filename", f"{folder}/temporal.db"]
        with started(command, {"HOME": folder}) as process:
            ready = [str(program), "operator", "cluster", "health", "--address", at]
            _wait(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, "Temporal's server")
            yield at, process.pid


@contextmanager
def started(command: list[str], settings: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=environments.ROOT, env=environments.variables() | settings, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as process,
    ):  # fmt: skip
        try:
            yield process
        except click.ClickException as error:
            errors.seek(0)
            raise click.ClickException(f"{error.message}\n{' '.join(command)}: {errors.read()[-3000:]}") from error
        finally:
            process.kill()


def line(process: subprocess.Popen[str], timeout: float) -> str:
    """Returns the next line that a process writes. Raises if none comes in time, or if it ends instead."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], timeout)[0]:
        raise click.ClickException(f"not within {timeout:g} s")
    line = process.stdout.readline()
    if not line:
        raise click.ClickException("it has ended")
    return line


def go_on(process: subprocess.Popen[str]) -> None:
    """Writes the line for which a subject waits."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


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


def require(right: bool, otherwise: str) -> None:
    if not right:
        raise click.ClickException(otherwise)


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_UP
    while not condition():
        require(time.monotonic() < deadline, f"{what} has not started")
        time.sleep(0.2)
