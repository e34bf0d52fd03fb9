"""Measures how long each peer leaves the job of a killed worker, with the settings of the other benches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from kit.broker import programs

from ..kit import report
from ..kit.database import server
from . import theirs
from .theirs import PEERS


def recoveries(kills: int, patience: float) -> dict[str, list[float]]:
    """Returns for each peer the seconds from each kill to the next attempt, without kills that had none in time.

    Peers run at the same time, because they mostly wait. Each has its own server, because together they would need too
    many connections.
    """
    peers = [peer for peer in PEERS.values() if not peer.batches and (programs() or not peer.needs_broker)]
    for peer in peers:
        theirs.environment(peer)
    needs_broker = any(peer.needs_broker for peer in peers)
    with theirs.rabbitmq(needs_broker) as broker, ThreadPoolExecutor(len(peers)) as threads:

        def once(peer: theirs.Peer) -> float | None:
            with server() as postgres, postgres.database() as dsn:
                url = broker.new_url() if broker and peer.needs_broker else None
                return theirs.recovery(dsn, peer, url, patience)

        report.progress(f"{kills} kills of each of {', '.join(peer.title for peer in peers)}, beside each other")
        turns = {peer.title: threads.submit(lambda peer=peer: [once(peer) for _ in range(kills)]) for peer in peers}  # type: ignore[misc]
        times = {title: turn.result() for title, turn in turns.items()}
    return {title: [time for time in found if time is not None] for title, found in times.items()}
