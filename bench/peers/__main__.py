"""Measures the pipeline steps/s of Outbox beside its peers: the same job, the same Postgres, the same run.

`python -m bench.peers --help`
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import click

from kit.broker import Broker, programs

from ..kit import report
from ..kit.database import Server, machine, server
from . import ours, theirs
from .job import KINDS
from .theirs import PEERS, Peer

Rates = dict[str, list[float]]
"""For each subject, a rate for each round."""


@click.command()
@click.option("--jobs", default=20_000, show_default=True, help="Workflows of a run of Outbox; each peer has a part.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option(
    "--peer", "names", multiple=True, type=click.Choice([*PEERS, "none"]), help="Only this one (may be repeated)."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(jobs: int, rounds: int, names: tuple[str, ...], json_file: Path | None) -> None:
    """Measure Outbox and its peers. In each round every subject has its turn, on a fresh database."""
    peers = [peer for name, peer in PEERS.items() if not names or name in names]
    if programs() is None and any(peer.needs_broker for peer in peers):
        report.progress("there is no RabbitMQ on this machine (install rabbitmq-server): what needs it is left out")
        peers = [peer for peer in peers if not peer.needs_broker]
    versions = {peer.title: theirs.environment(peer) for peer in peers}
    found: dict[str, Rates] = {kind: {} for kind in KINDS}
    with server() as postgres, theirs.rabbitmq(any(peer.needs_broker for peer in peers)) as broker:
        for number in range(1, rounds + 1):
            for kind in KINDS:
                for title, rate in measured(postgres, broker, kind, jobs, peers, f"round {number} of {rounds}"):
                    found[kind].setdefault(title, []).append(rate)
        where = machine(postgres.dsn)
    figures: dict[str, dict[str, float]] = {}
    for kind, rates in found.items():
        figures |= {f"{kind}: {title}, jobs/s": report.spread(values) for title, values in rates.items()}
    if peers:
        figures |= ratios("steps", ours.STEPS, found["steps"], peers)
        singly = [peer for peer in peers if not peer.batches]
        figures |= ratios("writes", ours.WRITES, found["writes"], singly, most=1)
        figures |= ratios("writes", ours.SHARES, found["writes"], singly, most=1)
        figures |= ratios("writes", ours.BATCHES, found["writes"], peers, most=1)
    settings = {"jobs": jobs, "rounds": rounds}
    report.show("peers", settings, figures, {**where, "peers": versions}, json_file)


def measured(
    postgres: Server, broker: Broker | None, kind: str, jobs: int, peers: list[Peer], turn: str
) -> Iterator[tuple[str, float]]:
    """Yields the jobs/s of each subject that does jobs of this kind."""
    for title, pipeline in ours.SUBJECTS.get(kind, {}).items():
        report.progress(f"{turn}, {kind}: {title}")
        with postgres.database() as dsn:
            yield title, ours.rate(dsn, pipeline, jobs)
    for peer in peers:
        report.progress(f"{turn}, {kind}: {peer.title}")
        with postgres.database() as dsn:
            url = broker.new_url() if broker and peer.needs_broker else None
            yield peer.title, theirs.rate(dsn, peer, kind, max(1, round(jobs * peer.part)), url)


def ratios(
    kind: str, title: str, rates: Rates, peers: list[Peer], most: int | None = None
) -> dict[str, dict[str, float]]:
    """Returns the ratio Outbox : peer in each round, for the best peers by their medians. The best one is marked."""
    order = sorted((peer.title for peer in peers), key=lambda peer: -statistics.median(rates[peer]))
    return {
        f"{kind}: {title} : {peer}{', the best' if peer == order[0] else ''}": report.spread(
            [mine / other for mine, other in zip(rates[title], rates[peer], strict=True)]
        )
        for peer in order[:most]
    }


if __name__ == "__main__":
    main()
