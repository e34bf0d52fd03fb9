"""Runs the benches one after the other. Each writes its figures and a picture of them into a folder.

`python -m bench [NAME ...] [--out FOLDER] [--quick | --history]`
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .kit import history, picture, report


@dataclass(frozen=True, slots=True)
class Bench:
    """A module of this package that writes its figures with --json.

    `quick` has its options for a run of some seconds. `headline` is a regular expression: the figures that match it are
    in the table at the end. The files have all figures.
    """

    quick: str
    headline: str = ""


BENCHES = {
    "throughput": Bench("--jobs 4000 --rounds 1"),
    "sharing": Bench("--jobs 400 --rounds 1", headline="shared"),
    "peers": Bench("--jobs 400 --rounds 1 --peer none"),
    "latency": Bench(
        "--seconds 3 --single 20 --saturated 4000 --rounds 1", headline="capacity|: COMMIT to .* p(50|99) ms"
    ),
    "recovery": Bench("--kills 8 --peer-kills 0", headline="jobs, s$|last.* p99|^[A-Z].*, s$"),
    "submit": Bench("--single 100 --bulk 2000 --rounds 1"),
    "connections": Bench("--calls 10 --rounds 1", headline="adds"),
    "embedding": Bench("--calls 10 --times 2 --rounds 1"),
    "idle": Bench("--seconds 5 --settle 0 --rounds 1", headline="statements|CPU|PSS"),
    "backlog": Bench("--jobs 20000 --seconds 3"),
    "relay": Bench("--messages 5000 --rounds 1 --single 20 --backlog 20000", headline="^(?!.*CPU)"),
    "unroutable": Bench("--messages 900 --rounds 1", headline="^(?!.*CPU)"),
    "bloat": Bench("--seconds 12 --slice 2 --rate 1000"),
    "endurance": Bench("--seconds 16 --slice 2", headline="steps/s|claim|dead"),
    "limits": Bench("--jobs 2000 --rounds 1"),
    "due": Bench("--many 2000 --seconds 5 --rounds 1", headline="p(50|99) ms|gone"),
    "lists": Bench("--workflows 20000 --times 3", headline="p95"),
    "ui": Bench(
        "--workflows 20000 --times 2 --tabs 20 --seconds 3 --jobs 2000 --rounds 1", headline="p95|Postgres|MB|open :"
    ),
    "agents": Bench("--runs 5 --agents 20 --seconds 5 --settle 0 --rounds 1", headline="adds|statements|CPU"),
    "calls": Bench("--workflows 100 --rounds 1 --peer none", headline="workflows/s$|p99|statements"),
    "kills": Bench("--engine nothing --engine outbox --point 10"),
    "scale": Bench(
        "--size 1000 --size 100000 --many 1 --many 100 --cycles 10 --rounds 2", headline="claim and commit|status"
    ),
}
"""The benches in the order in which they run. A new bench adds a line here."""


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, type=click.Choice(list(BENCHES)))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("build/bench"), show_default=True,
              help="Where NAME.json and NAME.svg go.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Tiny sizes, to see that all of it runs; the figures mean nothing.")
@click.option("--history", "kept", is_flag=True, help="Keep the figures, with the commit, in bench/history.")
def main(names: Sequence[str], out: Path, quick: bool, kept: bool) -> None:
    """Run all benches, or those with these names. One that fails doesn't keep the others from running."""
    picture.require()
    if kept and quick:
        raise click.UsageError("--quick gives no figures that are worth keeping: leave out --history")
    out.mkdir(parents=True, exist_ok=True)
    documents: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    chosen = list(names or BENCHES)
    for number, name in enumerate(chosen, 1):
        report.progress(f"{name} ({number} of {len(chosen)})")
        document = run(name, out.absolute(), quick)
        if isinstance(document, dict):
            documents[name] = document
        elif document:
            failed.append(f"{name}: {document}")
            report.progress(failed[-1])
    report.summary({name: headline(name, document) for name, document in documents.items()})
    report.progress(f"NAME.json and NAME.svg of {', '.join(documents) or 'nothing'} are in {out}")
    if kept:
        report.progress(f"kept in {history.keep(documents)}")
    if failed:
        raise click.ClickException(f"not all was measured. {'; '.join(failed)}")


def run(name: str, out: Path, quick: bool) -> dict[str, Any] | str:
    """Runs a bench and draws its picture. Returns its document, or what went wrong ("" if it can't run here)."""
    json_file, svg_file = out / f"{name}.json", out / f"{name}.svg"
    for file in (json_file, svg_file):
        file.unlink(missing_ok=True)  # an older run's files must not be mistaken for this one's
    options = BENCHES[name].quick.split() if quick else []
    command = [sys.executable, "-m", f"bench.{name}", "--json", str(json_file), *options]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it got SIGINT, too, and stops its servers
        raise
    if code:
        return f"exit code {code}"
    if not json_file.exists():
        return ""
    document: dict[str, Any] = json.loads(json_file.read_text(encoding="utf-8"))
    try:
        picture.draw(document, svg_file)
    except Exception as error:  # hours of figures must not be lost: they are shown, and the other benches run
        return f"no picture, {type(error).__name__}: {error}"
    return document


def headline(name: str, document: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the figures of a bench for the table at the end."""
    wanted = re.compile(BENCHES[name].headline)
    return {title: values for title, values in document["figures"].items() if wanted.search(title)}


if __name__ == "__main__":
    main()
