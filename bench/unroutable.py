"""Measures what a topic without a queue costs a relay's other messages, in strict mode and out of it.

`python -m bench.unroutable --help`
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

import click
import psutil
import psycopg

from kit.broker import Broker, channel, programs

from .kit import report
from .kit.database import Server, busy_seconds, engine, machine, server
from .kit.publisher import BODY, TOPIC
from .kit.steps import wait_until
from .relay import IDLE, rabbitmq, until_relayed

NOWHERE = "posts.nowhere"
KEYS, LOST_KEYS = 1_000, 100

WRITE = """
    INSERT INTO outbox.messages (topic, key, payload)
    SELECT CASE WHEN lost THEN %(nowhere)s ELSE %(topic)s END,
           CASE WHEN lost THEN 'lost_' || n / 10 %% %(lost_keys)s ELSE 'post_' || n %% %(keys)s END, %(payload)s::jsonb
    FROM (SELECT n, n %% 10 = 0 AS lost FROM generate_series(1, %(all)s::bigint) AS n) AS made
    WHERE NOT lost OR %(mixed)s
"""


@dataclass(slots=True)
class Side:
    """A relay with a database and a virtual host of its own. `mixed`: one topic in ten has no queue there.

    `took` has the seconds of each round from the commit of its messages, and `busy` the CPU seconds of the relay and of
    Postgres in them.
    """

    dsn: str
    url: str
    relay: Popen[bytes]
    mixed: bool
    sent: int = 0
    took: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def run(self, messages: int) -> None:
        """Sends so many messages that have a queue, with or without a ninth more that have none."""
        wait_until(self.dsn, IDLE, 60)
        with psycopg.connect(self.dsn) as conn:
            values = {"topic": TOPIC, "nowhere": NOWHERE, "keys": KEYS, "lost_keys": LOST_KEYS}
            more = {"payload": BODY.decode(), "all": messages // 9 * 10, "mixed": self.mixed}
            conn.execute(WRITE, {**values, **more})
            conn.commit()
            start, before = time.monotonic(), self._busy(conn)
            until_relayed(self.dsn, self.relay, self.sent + messages)
            self.took.append(time.monotonic() - start)
            self.busy.append(self._busy(conn) - before)
        self.sent += messages
        self._check_books(messages)

    def _busy(self, conn: psycopg.Connection) -> float:
        server = psutil.Process(conn.info.backend_pid).parent()
        assert server is not None
        busy = busy_seconds(self.relay.pid)
        for backend in server.children():
            with suppress(psutil.NoSuchProcess):
                busy += busy_seconds(backend.pid)
        gone = server.cpu_times()
        return busy + float(gone.children_user + gone.children_system)

    def _check_books(self, messages: int) -> None:
        """Raises unless the queue has each message that it takes, and the table each other one. Empties the queue."""
        parked = self.sent // 9 if self.mixed else 0
        with psycopg.connect(self.dsn) as conn, channel(self.url) as opened:
            (beside,) = conn.execute("SELECT count(*) FROM outbox.parked_messages").fetchone() or (0,)
            found = opened.queue_purge("bench").method.message_count
        if (found, beside) != (messages, parked):
            told = f"{found:,} messages of {messages:,} in the queue, {beside:,} of {parked:,} beside the log"
            raise click.ClickException(f"the books are wrong: {told}")


@click.command()
@click.option("--messages", default=18_000, show_default=True, help="Messages of a run that have a queue.")
@click.option("--rounds", default=12, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(messages: int, rounds: int, json_file: Path | None) -> None:
    """Measure messages alone, and with one in ten more that no queue takes. Those stay, so each round has more."""
    if programs() is None:
        report.progress("nothing is measured: there is no RabbitMQ on this machine (install rabbitmq-server)")
        return
    messages -= messages % 9
    figures: dict[str, dict[str, float]] = {}
    with server() as postgres, rabbitmq() as broker:
        for name, options in {"relay": (), "relay --strict": ("--strict",)}.items():
            with side(postgres, broker, False, options) as alone, side(postgres, broker, True, options) as beside:
                for each in (alone, beside):
                    each.run(messages)  # until then a relay takes small parts
                    each.took.clear()
                    each.busy.clear()
                for number in range(1, rounds + 1):
                    for each in (alone, beside) if number % 2 else (beside, alone):
                        each.run(messages)
                    ratio = alone.took[-1] / beside.took[-1]
                    report.progress(
                        f"{name}, round {number} of {rounds}: {messages / beside.took[-1]:,.0f} messages/s, {ratio:.2f}"
                    )
            ratios = [without / it for without, it in zip(alone.took, beside.took, strict=True)]
            sent = [busy / messages * 1e6 for busy in alone.busy]
            parked = [(it - without) / messages * 9e6 for without, it in zip(alone.busy, beside.busy, strict=True)]
            figures[f"{name}: rate beside it : alone"] = report.spread(ratios)
            figures[f"{name}: alone, messages/s"] = report.spread([messages / took for took in alone.took])
            figures[f"{name}: beside it, messages/s"] = report.spread([messages / took for took in beside.took])
            figures[f"{name}: a message with a queue, CPU µs"] = report.spread(sent)
            figures[f"{name}: a message without one, CPU µs"] = report.spread(parked)
        where = machine(postgres.dsn)
    report.show("unroutable", {"messages": messages, "rounds": rounds}, figures, where, json_file)


@contextmanager
def side(postgres: Server, broker: Broker, mixed: bool, options: tuple[str, ...]) -> Iterator[Side]:
    """Starts a relay on a database of its own, to an exchange with one durable queue that takes one of the topics."""
    url = broker.new_url()
    with channel(url) as opened:
        opened.exchange_declare("bench", "topic", durable=True)
        opened.queue_declare("bench", durable=True, arguments={"x-queue-type": "quorum"})
        opened.queue_bind("bench", "bench", TOPIC)
    command = ("relay", "--exchange", "bench", *options)
    with postgres.database() as dsn, engine(dsn, *command, OUTBOX_AMQP_URL=url) as relay:
        yield Side(dsn, url, relay, mixed)


if __name__ == "__main__":
    main()
