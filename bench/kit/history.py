"""Keeps the figures of a run in the repository: one file a run, with its commit, its date and its machine.

`python -m bench.kit.history FOLDER` makes it of the documents in a folder, `python -m bench --history` of those that it
has just written.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bench" / "history"


def stamp() -> dict[str, Any]:
    """Returns which code is measured, when, and how busy the machine is: of runs on a busy one only ratios mean much.

    `commit` is None outside a git work tree, and ends in "+" if files of it have been changed.
    """
    asked = ("git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+")
    try:
        commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "commit": commit, "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": [round(load, 1) for load in os.getloadavg()],
    }  # fmt: skip


def entry(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what is kept of these documents, by bench. Raises ClickException unless all are of one clean commit."""
    runs = {name: document["run"] for name, document in documents.items()}
    commits = {run["commit"] for run in runs.values()}
    if len(commits) != 1 or any(commit is None or commit.endswith("+") for commit in commits):
        told = ", ".join(sorted(str(commit) for commit in commits)) or "nothing"
        raise click.ClickException(f"figures are kept of one commit without changes, and these are of {told}")
    (commit,) = commits
    machine = next(iter(documents.values()))["machine"]
    return {
        "commit": commit,
        "date": max(run["date"] for run in runs.values()),
        "machine": machine,
        "benches": {
            name: {"settings": document["settings"], "load": runs[name]["load"], "figures": document["figures"]}
            for name, document in documents.items()
        },
    }


def keep(documents: Mapping[str, Mapping[str, Any]], folder: Path = FOLDER) -> Path:
    """Writes the entry of these documents, and returns its file."""
    kept = entry(documents)
    file = folder / f"{kept['date'][:10]}-{kept['commit']}.json"
    folder.mkdir(exist_ok=True)
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return file


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Keep the figures of the documents in FOLDER."""
    documents = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    click.echo(keep(documents))


if __name__ == "__main__":
    main()
