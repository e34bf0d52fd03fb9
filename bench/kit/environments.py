"""Makes the environments of programs that need other packages than Outbox: one for each file of pinned versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from . import report

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "peers"


def python_of(requirements: Path | None) -> str:
    """Returns the Python of the environment that `make` has made; without requirements, this process's own."""
    return sys.executable if requirements is None else str(_folder(requirements) / "bin" / "python")


def make(requirements: Path, title: str) -> dict[str, str]:
    """Makes the environment from the package index, unless it exists with these versions. Returns the versions."""
    folder, wanted = _folder(requirements), requirements.read_text()
    made = folder / "requirements.txt"
    if not made.exists() or made.read_text() != wanted:
        report.progress(f"an environment for {title}, from the package index")
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([python_of(requirements), "-m", "pip", "install", "--quiet", *wanted.split()])
        made.write_text(wanted)
    return dict(line.split("==", 1) for line in wanted.split())


def variables() -> dict[str, str]:
    """Returns this process's environment variables without its path, which must not be on the path of another one."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _folder(requirements: Path) -> Path:
    return ENVIRONMENTS / requirements.stem


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=variables(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {done.stderr[-3000:]}")
