"""Measures a relay to RabbitMQ: messages/s beside pika alone, the delay of a message, and the relay's memory.

`python -m bench.relay --help`
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
import psutil
import psycopg

from kit.broker import Broker, channel, programs, queue_depth

from .kit import report
from .kit.database import busy_seconds, engine, machine, server
from .kit.publisher import BODY, TOPIC
from .kit.steps import wait_until

KEYS = 1_000

WRITE = """
    INSERT INTO outbox.messages (topic, key, payload)
    SELECT %s, 'post_' || n %% %s::bigint, %s::jsonb FROM generate_series(1, %s::bigint) AS n
"""
IDLE = "SELECT coalesce(bool_and(idle), false) FROM outbox.relays"
DONE = "SELECT window_end IS NULL AND relayed >= %s FROM outbox.relays"


@dataclass(frozen=True, slots=True)
class Run:
    """Messages/s; CPU µs of the publishing process per message; its peak memory (resident, MB)."""

    rate: float
    cpu: float
    peak: float = 0.0


@click.command()
@click.option("--messages", default=50_000, show_default=True, help="Messages of a run.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--single", default=200, show_default=True, help="Messages sent one at a time, for the latency.")
@click.option("--backlog", default=1_000_000, show_default=True, help="Messages that wait, for the memory.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(messages: int, rounds: int, single: int, backlog: int, json_file: Path | None) -> None:
    """Measure the relay on a RabbitMQ of the bench's own. In each round every subject has its turn."""
    if programs() is None:
        report.progress("the relay is not measured: there is no RabbitMQ on this machine (install rabbitmq-server)")
        return
    with server() as postgres, rabbitmq() as broker:
        subjects: dict[str, Callable[[str, str], Run]] = {
            "pika alone": lambda dsn, url: pika_alone(url, messages),
            "relay": lambda dsn, url: relayed(dsn, url, messages),
            "relay --strict": lambda dsn, url: relayed(dsn, url, messages, "--strict"),
        }
        found: dict[str, list[Run]] = {name: [] for name in subjects}
        for number in range(1, rounds + 1):
            for name, measure in subjects.items():
                report.progress(f"round {number} of {rounds}: {name}")
                with postgres.database() as dsn:
                    found[name].append(measure(dsn, queue(broker)))
        report.progress(f"{single} messages, one at a time")
        with postgres.database() as dsn:
            delays = latencies(dsn, queue(broker), single)
        report.progress(f"a backlog of {backlog:,}")
        with postgres.database() as dsn:
            waiting = relayed(dsn, queue(broker), backlog)
        where = machine(postgres.dsn)
    ratios = [mine.rate / alone.rate for mine, alone in zip(found["relay"], found["pika alone"], strict=True)]
    figures = {f"{name}, messages/s": report.spread([run.rate for run in runs]) for name, runs in found.items()}
    figures |= {"relay : pika alone": report.spread(ratios)}
    figures |= {f"{name}, CPU µs/message": report.spread([run.cpu for run in runs]) for name, runs in found.items()}
    figures |= {
        "COMMIT to consumer, p50 ms": report.spread([report.percentile(delays, 0.50)]),
        "COMMIT to consumer, p99 ms": report.spread([report.percentile(delays, 0.99)]),
        f"backlog of {backlog:,}, messages/s": report.spread([waiting.rate]),
        f"backlog of {backlog:,}, peak MB": report.spread([waiting.peak]),
    }
    settings = {"messages": messages, "keys": KEYS, "rounds": rounds, "single": single}
    report.show("relay", settings, figures, where, json_file)


@contextmanager
def rabbitmq() -> Iterator[Broker]:
    """Starts a node in a temporary folder. Removes it and its data at the end."""
    broker = Broker()
    try:
        yield broker.start()
    finally:
        broker.remove()


def queue(broker: Broker) -> str:
    """Returns the URL of a new virtual host, in which the durable queue `bench` gets all of the exchange `bench`."""
    url = broker.new_url()
    with channel(url) as opened:
        opened.exchange_declare("bench", "topic", durable=True)
        opened.queue_declare("bench", durable=True, arguments={"x-queue-type": "quorum"})
        opened.queue_bind("bench", "bench", "#")
    return url


def pika_alone(url: str, messages: int) -> Run:
    """Measures the client without a relay or a database."""
    command = [sys.executable, "-m", "bench.kit.publisher", url, str(messages)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise click.ClickException(f"bench.kit.publisher: {done.stderr}")
    check_books(url, messages)
    took, busy = map(float, done.stdout.split())
    return Run(messages / took, busy / messages * 1e6)


def relayed(dsn: str, url: str, messages: int, *options: str) -> Run:
    """Measures `outbox relay` from the commit that made all messages to the last confirm."""
    with engine(dsn, "relay", "--exchange", "bench", *options, OUTBOX_AMQP_URL=url) as relay:
        wait_until(dsn, IDLE, 60)
        before = busy_seconds(relay.pid)
        start = write(dsn, messages)
        peak = until_relayed(dsn, relay, messages)
        took, busy = time.monotonic() - start, busy_seconds(relay.pid) - before
    check_books(url, messages)
    return Run(messages / took, busy / messages * 1e6, peak)


def until_relayed(dsn: str, relay: subprocess.Popen[bytes], messages: int) -> float:
    """Waits until the relay has nothing left to do, and returns its peak memory (resident, MB)."""
    watched, peak = psutil.Process(relay.pid), 0
    with psycopg.connect(dsn, autocommit=True) as conn:
        while conn.execute(DONE, (messages,)).fetchone() != (True,):
            if relay.poll() is not None:
                raise click.ClickException(f"outbox relay ended with {relay.returncode}")
            peak = max(peak, watched.memory_info().rss)
            time.sleep(0.02)
    return peak / 2**20


def write(dsn: str, messages: int) -> float:
    """Writes messages in one transaction. Returns when it was committed, by the monotonic clock."""
    with psycopg.connect(dsn) as conn:
        conn.execute(WRITE, (TOPIC, KEYS, BODY.decode(), messages))
        conn.commit()
        return time.monotonic()


def latencies(dsn: str, url: str, messages: int) -> list[float]:
    """Returns for each message the ms from its COMMIT to its arrival at a consumer. The relay is idle before each."""
    delays: list[float] = []
    arrived: list[float] = []
    with (
        engine(dsn, "relay", "--exchange", "bench", OUTBOX_AMQP_URL=url),
        channel(url) as opened,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        opened.basic_consume("bench", lambda *_: arrived.append(time.monotonic()), auto_ack=True)
        while len(delays) < messages:
            wait_until(dsn, IDLE, 60)
            conn.execute(WRITE, (TOPIC, KEYS, BODY.decode(), 1))
            committed = time.monotonic()
            while len(arrived) == len(delays):
                opened.connection.process_data_events(60)
            delays.append((arrived[-1] - committed) * 1000)
    check_books(url, 0)
    return delays


def check_books(url: str, messages: int) -> None:
    """Raises unless the broker has every message exactly once, by its own count and by what it delivers."""
    depth = queue_depth(url, "bench")
    with channel(url) as opened:
        # A deep queue is on disk, and the broker may pause for seconds before it delivers more.
        deliveries = islice(opened.consume("bench", auto_ack=True, inactivity_timeout=60), depth)
        ids = {properties.headers["cloudEvents_id"] for _, properties, _ in deliveries if properties is not None}
    if not depth == len(ids) == messages or queue_depth(url, "bench"):
        raise click.ClickException(
            f"the books are wrong: of {messages:,} messages the broker has {len(ids):,}, in {depth:,} deliveries"
        )


if __name__ == "__main__":
    main()
