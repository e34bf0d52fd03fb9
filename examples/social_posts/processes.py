"""Starts the demo's processes: the world and the workers. Every process that is started here is also ended here."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

APP = "outbox.demo.pipeline:posts"
GRACE = 15.0  # seconds that a process has to end after SIGTERM


class DemoError(Exception):
    """The demo can't go on. The message says why, with the last output of the process that failed."""


class Processes:
    """Starts processes that log to a temporary folder, and ends them all on exit."""

    def __init__(self, dsn: str, amqp_url: str | None = None) -> None:
        # The world runs on this machine, so a proxy from the environment must not be used.
        self.environment = os.environ | {"OUTBOX_DSN": dsn, "no_proxy": "127.0.0.1"}
        if amqp_url:
            self.environment["OUTBOX_AMQP_URL"] = amqp_url
        self.folder = tempfile.TemporaryDirectory(prefix="outbox-demo-")
        self.started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        self.folder.cleanup()

    def run(self, *arguments: str) -> None:
        """Runs an `outbox` command to its end."""
        command = [sys.executable, "-m", "outbox", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise DemoError(f"outbox {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")

    def start_world(self, outage_after: int) -> str:
        """Starts the world and returns its URL. Workers that start later get the URL in their environment."""
        options = ["--outage-after", str(outage_after)]
        process = self.start("-m", "outbox.demo.world", *options, stdout=subprocess.PIPE)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise DemoError(f"the service did not start: {self.last_words(process)}")
        self.environment["OUTBOX_DEMO_WORLD"] = url
        return url

    def start_worker(self) -> subprocess.Popen[str]:
        return self.start("-m", "outbox", "worker", "--app", APP, "--concurrency", "8", "--log", "json")

    def start(
        self, *arguments: str, stdout: int = subprocess.DEVNULL, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a Python process in a session of its own, so that Ctrl-C reaches only the director."""
        with self.log(len(self.started)).open("w") as log, undisturbed():
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=log,
                text=True,
                start_new_session=True,
            )
            self.started.append(process)
        return process

    def stop(self, processes: list[subprocess.Popen[str]]) -> list[int]:
        """Sends SIGTERM to all and returns their exit codes. Kills a process that doesn't end within GRACE seconds."""
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes = []
        for process in processes:
            try:
                codes.append(process.wait(GRACE))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        return codes

    def last_words(self, process: subprocess.Popen[str]) -> str:
        """Returns the end of what a process wrote to standard error."""
        return self.words(process)[-2000:].strip()

    def words(self, process: subprocess.Popen[str]) -> str:
        """Returns everything that a process wrote to standard error."""
        return self.log(self.started.index(process)).read_text()

    def log(self, number: int) -> Path:
        return Path(self.folder.name) / f"{number}.log"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delays signals that end the demo: a process must be in the list before it can be ended."""
    came: list[int] = []
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in former:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)
