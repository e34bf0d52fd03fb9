"""Measures what a long-open transaction does to an outbox: the message log, and a table read with SKIP LOCKED.

`python -m bench.bloat --help`
"""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg

from .kit import report
from .kit.database import Server, machine, megabytes, server
from .kit.horizon import around, horizon
from .kit.publisher import BODY, TOPIC
from .kit.readers import PLAIN_TABLE, Taken, relay, skip_locked

CLIENTS = 2
AT_ONCE = 10
"""Messages in one transaction of the writer."""

NOT_REMOVABLE = re.compile(r"(\d+) are dead but not yet removable")
INSERT_MS = re.compile(r"lat ([\d.]+) ms")


@dataclass(frozen=True, slots=True)
class Subject:
    """An outbox: its table, how it is read, and the table that holds the reader's cursor, if any."""

    table: str
    reader: Callable[[str, Taken], AbstractContextManager[None]]
    cursor: str | None = None


SUBJECTS = {
    "Outbox": Subject("outbox.messages", relay, cursor="outbox.relays"),
    "SKIP LOCKED": Subject("plain_outbox", skip_locked),
}


@click.command()
@click.option("--seconds", default=60, show_default=True, help="How long each outbox is written and read.")
@click.option("--slice", "slice_", default=10, show_default=True, help="Seconds of a line of the table.")
@click.option("--rate", default=2_000, show_default=True, help="Messages written a second.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(seconds: int, slice_: int, rate: int, json_file: Path | None) -> None:
    """Measure both, one after the other. After the first slice a transaction opens; it ends before the last one."""
    found = {}
    with server() as postgres:
        for name, subject in SUBJECTS.items():
            report.progress(f"{name} for {seconds} s")
            with postgres.database() as dsn:
                found[name] = run(postgres, dsn, subject, seconds, slice_, rate)
        where = machine(postgres.dsn)
    figures = {
        f"{name}: {title}": report.spread([value])
        for name, lines in found.items()
        for title, value in compared(lines).items()
    }
    settings = {"seconds": seconds, "rate": rate, "in a transaction": AT_ONCE}
    report.show_series("bloat", settings, found, where, json_file, figures=figures)


def run(postgres: Server, dsn: str, subject: Subject, seconds: int, slice_: int, rate: int) -> list[dict[str, Any]]:
    """Writes and reads for some seconds. Returns a line for each slice. Raises unless each message was read once."""
    taken = Taken()
    transactions = rate * seconds // AT_ONCE // CLIENTS
    with psycopg.connect(dsn, autocommit=True) as conn, horizon(dsn) as old:
        conn.execute(PLAIN_TABLE)
        with subject.reader(dsn, taken), writer(postgres, dsn, subject.table, rate, transactions, slice_) as pgbench:
            started, lines = time.monotonic(), []
            for end in range(slice_, seconds + 1, slice_):
                held = slice_ < end <= seconds - slice_
                old.hold(held)
                begun, messages, fetches = time.monotonic(), taken.messages, len(taken.fetches)
                time.sleep(max(0.0, started + end - time.monotonic()))
                # A slice needs a finished read to show anything. The second fetch proves that the first was deleted.
                while len(taken.fetches) < fetches + 2 and pgbench.poll() is None:
                    time.sleep(0.05)
                took = time.monotonic() - begun
                lines.append(
                    {
                        "second": end,
                        "horizon": "held" if held else "",
                        "dead rows": dead_rows(conn, subject.table),
                        **({"dead in cursor": dead_rows(conn, subject.cursor)} if subject.cursor else {}),
                        "MB": megabytes(conn, subject.table),
                        **({"fetch ms": statistics.median(read)} if (read := taken.fetches[fetches:]) else {}),
                        "messages/s": (taken.messages - messages) / took,
                    }
                )
            _, said = pgbench.communicate()
            until_read(taken, CLIENTS * transactions * AT_ONCE)
    for line, milliseconds in zip(lines, INSERT_MS.findall(said), strict=False):
        line["INSERT ms"] = float(milliseconds)
    return lines


def compared(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns a series in short: before the open transaction, and at its end. Figures without reads are absent."""
    before, held = around(lines)
    if not held:
        return {}
    fetches = [float(line["fetch ms"]) for line in before if "fetch ms" in line]
    found = {
        "fetch before, ms": statistics.mean(fetches) if fetches else None,
        "fetch at the end of it, ms": held[-1].get("fetch ms"),
        "dead at the end of it, rows": held[-1]["dead rows"],
        "size at the end of it, MB": held[-1]["MB"],
    }
    return {title: value for title, value in found.items() if value is not None}


def until_read(taken: Taken, messages: int) -> None:
    """Returns when the reader has all messages. Raises if it has more, or doesn't have all within a minute."""
    deadline = time.monotonic() + 60
    while taken.messages < messages and time.monotonic() < deadline:
        time.sleep(0.05)
    if taken.messages != messages:
        raise click.ClickException(f"the books are wrong: {messages:,} were written, {taken.messages:,} were read")


@contextmanager
def writer(
    postgres: Server, dsn: str, table: str, rate: int, transactions: int, slice_: int
) -> Iterator[subprocess.Popen[str]]:
    """Writes messages at a fixed rate, a few in a transaction. pgbench reports for each slice how long one takes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        script = Path(folder, "write.sql")
        script.write_text(
            f"INSERT INTO {table} (topic, key, payload) SELECT '{TOPIC}', 'post_' || n, '{BODY.decode()}'"
            f" FROM generate_series(1, {AT_ONCE}) AS n;\n"
        )
        options = (f"--client={CLIENTS}", f"--transactions={transactions}", f"--rate={rate / AT_ONCE}")
        command = [str(postgres.programs / "pgbench"), "--no-vacuum", f"--progress={slice_}", *options]
        process = subprocess.Popen(
            [*command, f"--file={script}", dsn], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        with process:
            try:
                yield process
            finally:
                process.terminate()


def dead_rows(conn: psycopg.Connection, table: str) -> int:
    """Vacuums a table. Returns how many dead rows VACUUM reports that it had to leave."""
    said: list[str] = []

    def listen(notice: psycopg.errors.Diagnostic) -> None:
        said.append(notice.message_primary or "")

    conn.add_notice_handler(listen)
    conn.execute(f"VACUUM (VERBOSE) {table}".encode())
    conn.remove_notice_handler(listen)
    return sum(int(number) for number in NOT_REMOVABLE.findall("\n".join(said)))


if __name__ == "__main__":
    main()
