"""The processes of the demo: the world and the workers. What is started here is ended here, in every case."""

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
GRACE = 15.0  # seconds that a worker has to finish after SIGTERM


class DemoError(Exception):
    """The demo cannot go on. The message says why, with the last words of the process that failed."""


class Processes:
    """Starts processes that log to a folder of their own, and ends them all on exit."""

    def __init__(self, dsn: str, amqp_url: str | None = None) -> None:
        # The world is on this machine: a proxy that the environment names doesn't lead to it.
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
        """Run an `outbox` command to its end."""
        command = [sys.executable, "-m", "outbox", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise DemoError(f"outbox {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")

    def start_world(self, outage_after: int) -> str:
        """Start the world; return its URL, which the workers started from now on know, too."""
        options = ["--outage-after", str(outage_after)]
        process = self.start("-m", "outbox.demo.world", *options, stdout=subprocess.PIPE)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise DemoError(f"the world did not start: {self.last_words(process)}")
        self.environment["OUTBOX_DEMO_WORLD"] = url
        return url

    def start_worker(self) -> subprocess.Popen[str]:
        return self.start("-m", "outbox", "worker", "--app", APP, "--concurrency", "8", "--log", "json")

    def start(
        self, *arguments: str, stdout: int = subprocess.DEVNULL, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a Python process in a session of its own, so that Ctrl-C reaches the director alone."""
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
        """SIGTERM them all, and return their exit codes; one that doesn't end within its grace is killed."""
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
        """The end of what a process wrote to standard error."""
        return self.words(process)[-2000:].strip()

    def words(self, process: subprocess.Popen[str]) -> str:
        """All that a process wrote to standard error."""
        return self.log(self.started.index(process)).read_text()

    def log(self, number: int) -> Path:
        return Path(self.folder.name) / f"{number}.log"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off what ends the demo: a process that is cut short between its start and its entry in the list lives on."""
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
