"""Kills the process of an agent at each of its calls, starts it again, and counts what happens twice.

`python -m bench.kills --help`
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click

from ..kit import environments, report
from ..kit.database import Server, address, machine, server
from .agent import ASKED, POINTS, READS, REQUESTS, WRITE, World

HERE = Path(__file__).parent
START_UP = 120
"""Seconds for a process to come to the point at which it dies."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A module of this folder. `requirements` is the file of its versions; None: the packages of this process."""

    title: str
    module: str
    requirements: Path | None = None


ENGINES = {
    "nothing": Engine("Nothing", "nothing"),
    "outbox": Engine("OutboxDurability", "outbox"),
    "outbox-plain": Engine("OutboxDurability without effect", "outbox_plain"),
    "dbos": Engine("DBOSDurability", "dbos", HERE / "pydantic-ai-dbos.txt"),
    "absurd": Engine("AbsurdDurability", "absurd", HERE / "pydantic-ai-harness.txt"),
    "pgtask": Engine("PGTaskDurability", "pgtask", HERE / "pydantic-ai-harness.txt"),
}


@click.command()
@click.option(
    "--engine", "names", multiple=True, type=click.Choice(list(ENGINES)), help="Only this one (may be repeated)."
)
@click.option(
    "--point",
    "numbers",
    multiple=True,
    type=click.IntRange(1, len(POINTS)),
    help="Only this one, by its number (may be repeated).",
)
@click.option("--patience", default=120.0, show_default=True, help="Seconds after which a run counts as lost.")
@click.option("--at-once", default=2, show_default=True, help="Runs of an engine beside each other.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(
    names: tuple[str, ...], numbers: tuple[int, ...], patience: float, at_once: int, json_file: Path | None
) -> None:
    """Run one agent for each engine and point of death. Each run has a fresh database and two processes."""
    engines = [engine for name, engine in ENGINES.items() if not names or name in names]
    points = [point for number, point in enumerate(POINTS, 1) if not numbers or number in numbers]
    versions = {engine.title: packages(engine) for engine in engines}
    figures: dict[str, dict[str, float]] = {}
    with server() as postgres, ThreadPoolExecutor(at_once) as threads:
        for engine in engines:
            report.progress(f"{engine.title}: {len(points)} kills")
            worlds = list(threads.map(partial(killed, postgres, engine, patience), points))
            figures |= {f"{engine.title}: {name}": report.spread([count]) for name, count in counted(worlds).items()}
        where = machine(postgres.dsn)
    settings = {"points": len(points), "patience": patience, "at once": at_once}
    report.show("kills", settings, figures, {**where, "engines": versions}, json_file)


def packages(engine: Engine) -> dict[str, str]:
    """Returns the versions that an engine runs with. Makes its environment."""
    if engine.requirements is None:
        return {name: version(name) for name in ("pydantic-ai-slim", "outbox-engine")}
    return environments.make(engine.requirements, engine.title)


def killed(postgres: Server, engine: Engine, patience: float, point: str) -> list[str] | None:
    """Returns what has happened in the world, over both processes; None if the run has not ended in time.

    Raises if the first process doesn't die at the point, or the second one fails.
    """
    with tempfile.TemporaryDirectory(prefix="outbox-kills-") as folder, postgres.database() as dsn:
        file = Path(folder) / "world"
        command = [environments.python_of(engine.requirements), "-m", f"bench.kills.{engine.module}", address(dsn)]
        first = ended([*command, str(file), point], START_UP)
        if first is None or first.returncode != -signal.SIGKILL:
            raise click.ClickException(f"{engine.title} doesn't come to {point!r}: {_last_words(first)}")
        second = ended([*command, str(file), ""], patience)
        if second is not None and second.returncode:
            raise click.ClickException(f"{engine.title} fails after a kill {point}: {_last_words(second)}")
        return None if second is None else World(file).happened()


def counted(worlds: Sequence[list[str] | None]) -> dict[str, int]:
    """Returns how often something happened again, a person was asked, or a run was lost, over all kills."""
    seen = [Counter(world) for world in worlds if world is not None]
    lost = [each for each in seen if any(each[call] == 0 for call in (*REQUESTS, *READS, WRITE))]

    def again(*calls: str) -> int:
        return sum(max(0, each[call] - 1) for each in seen for call in calls)

    return {
        "model requests repeated": again(*REQUESTS),
        "reads repeated": again(*READS),
        "write made again": again(WRITE),
        "asked about a write": sum(each[ASKED] for each in seen),
        "lost": worlds.count(None) + len(lost),
    }


def ended(command: list[str], patience: float) -> subprocess.CompletedProcess[str] | None:
    """Runs a process to its end. Returns None if that doesn't come in time."""
    try:
        return subprocess.run(
            command, cwd=environments.ROOT, env=environments.variables(), capture_output=True, text=True,
            timeout=patience, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None


def _last_words(process: subprocess.CompletedProcess[str] | None) -> str:
    return f"exit code {process.returncode}, {process.stderr[-2000:]}" if process else f"not within {START_UP} s"


if __name__ == "__main__":
    main()
