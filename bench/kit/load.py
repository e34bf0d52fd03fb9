"""Makes open-loop load: pgbench submits on a schedule that no slow answer of the engine can delay."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from .database import Server

AT_ONCE = 10
"""Workflows in one transaction."""

CLIENTS = 4

SCRIPT = f"""
\\set n :n + 1
INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata)
SELECT 'posts', 'post_' || :client_id || '_' || :n || '_' || i,
       '{{"content": "The new release made our nightly report three times faster, thank you! #postgres"}}'
FROM generate_series(1, {AT_ONCE}) AS i;
"""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A transaction: when its COMMIT was answered, by the machine's clock, and how many seconds late it was sent."""

    committed: float
    late: float

    @property
    def should_have(self) -> float:
        """The time at which it would have been committed if it had been sent on time."""
        return self.committed - self.late


def submit(postgres: Server, dsn: str, workflows: int, rate: float | None = None) -> Mapping[str, Submitted]:
    """Submits workflows from a separate process. Returns the transaction of each entity. See `sending`."""
    with sending(postgres, dsn, workflows, rate) as sent:
        return {
            f"post_{client}_{number}_{i}": transaction
            for client, number, transaction in sent()
            for i in range(1, AT_ONCE + 1)
        }


@contextmanager
def sending(
    postgres: Server, dsn: str, workflows: int, rate: float | None = None, script: str = SCRIPT
) -> Iterator[Callable[[], list[tuple[str, str, Submitted]]]]:
    """Submits from a separate process. Yields a function that waits for its end and returns the transactions.

    Each of them is (client, number, transaction). `rate` is in workflows/s: transactions are due at random times
    (Poisson) with this mean rate. None means as fast as possible.
    """
    transactions = workflows // AT_ONCE // CLIENTS
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder, "submit.sql")
        file.write_text(script)
        options = [f"--client={CLIENTS}", f"--transactions={transactions}", "--define=n=0", "--protocol=prepared"]
        if rate is not None:
            options.append(f"--rate={rate / AT_ONCE}")
        command = [str(postgres.programs / "pgbench"), "--no-vacuum", "--log", f"--log-prefix={folder}/log", *options]
        process = subprocess.Popen(
            [*command, f"--file={file}", dsn], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

        def sent() -> list[tuple[str, str, Submitted]]:
            _, said = process.communicate()
            if process.returncode:
                raise click.ClickException(f"pgbench: {said}")
            (log,) = Path(folder).glob("log.*")
            return [_read(line) for line in log.read_text().splitlines()]

        with process:
            try:
                yield sent
            finally:
                process.terminate()


def _read(line: str) -> tuple[str, str, Submitted]:
    """Reads a line of pgbench's log: client, number, µs taken, script, second and µs of the end, and µs late if any."""
    client, number, _, _, seconds, micros, *late = line.split()
    return client, number, Submitted(int(seconds) + int(micros) / 1e6, int(late[0]) / 1e6 if late else 0.0)
