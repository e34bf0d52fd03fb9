"""`python -m chaos.failovers`: fails over again and again beside a light load, and counts what became of it.

Two servers with synchronous replication, two workers (one finds the primary by a name that moves, one by both hosts), two
relays, a consumer, and clients. Counts come from outside: the ids that clients were told are in a file, effects are rows
without any unique constraint, and a queue of the harness's own sees what the relay sends.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pika
import psycopg

from apps.failover import EXCHANGE, QUEUE, WORLD, orders
from kit.broker import Broker, channel
from kit.databases import OWNER, make_database
from kit.replication import FAILOVERS, Pair
from kit.servers import DEADLINE, wait_for
from outbox.database import migrations
from outbox.definition import deploy

from .load import Clients, Engine
from .witnesses import Tap

DATABASE, WITNESS = "failovers", "failovers_witness"
LOSING = {"asynchronous", "split"}
"""Failovers that lose what was acknowledged, by their nature."""

KINDS = tuple(kind for kind in FAILOVERS if kind not in LOSING)
WORKERS = {"worker by name": "name", "worker by hosts": "hosts"}
BACK_WITHIN = 15.0
"""Seconds in which everything is to be back at work. What is not counts as that, and as not back."""

STANDSTILL = 60.0
"""Seconds in which nothing more gets done in the end, after which what isn't done counts as lost."""

PROBES_EVERY = 0.2
"""Seconds between two probes, in which everything has something to do."""

SHOWN = 20
"""Entities that are told by name."""

LEASE = 6.0
SETTINGS = {"track_commit_timestamp": "on"}

# Rows of the new primary, by the process that wrote them: when the first of them was committed.
FIRST = """
    SELECT process, min(extract(epoch FROM pg_xact_commit_timestamp(xmin)))::float8
    FROM world.{table} WHERE at >= to_timestamp(%s) GROUP BY process
"""
TWICE = """
    SELECT entity FROM world.inside GROUP BY entity HAVING count(*) > 1
    UNION ALL SELECT entity FROM world.consumed GROUP BY entity HAVING count(*) > 1
"""


@dataclass
class Failover:
    """One failover: when the new primary took commits, and after how many seconds each process was back at work."""

    kind: str
    began: float
    at: float = 0.0
    back: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


@dataclass
class Result:
    """What became of a run. Entities are told with the kind of the failover that they were acknowledged after."""

    failovers: list[Failover] = field(default_factory=list)
    acknowledged: Counter[str] = field(default_factory=Counter)
    lost: dict[str, str] = field(default_factory=dict)  # kind by entity
    twice: dict[str, str] = field(default_factory=dict)
    not_sent: set[str] = field(default_factory=set)
    again: int = 0  # acknowledged by the answer to a duplicate
    sent_twice: int = 0
    ended: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.twice or self.not_sent)

    @property
    def anomalies(self) -> Counter[str]:
        """What was found, by name. That something is not back in time is one here, and no reason to exit with 1."""
        missing = sum(len(each.missing) for each in self.failovers)
        found = {
            "lost": len(self.lost),
            "effect twice": len(self.twice),
            "not sent": len(self.not_sent),
            "not back": missing,
        }
        return +Counter(found)


class Stage:
    """Everything that failovers need: servers, processes, clients."""

    def __init__(
        self, folder: Path, amqp: str, stack: ExitStack, clients: int, mutant: str, broken: Callable[[Any], None]
    ) -> None:
        self.pair = stack.enter_context(Pair(settings=SETTINGS))
        make_database(self.pair.primary, DATABASE)
        with psycopg.connect(self.pair.primary.dsn(DATABASE), autocommit=True) as admin:
            admin.execute(WORLD.encode())
        migrations.apply(self.dsn)
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            deploy.deploy(conn, orders)
            broken(conn)
        with channel(amqp) as opened:
            opened.exchange_declare(EXCHANGE, "topic", durable=True)
            opened.queue_declare(WITNESS, durable=True)
            opened.queue_bind(WITNESS, EXCHANGE, "#")
        self.tap = Tap(amqp, WITNESS)
        stack.callback(self.tap.end)
        self.engine = Engine(folder)
        stack.callback(self.engine.end)
        ways = {
            "name": self.pair.dsn(DATABASE, OWNER),
            "hosts": self.pair.hosts(DATABASE, OWNER, "?target_session_attrs=read-write"),
        }
        broker = {"OUTBOX_AMQP_URL": amqp}
        start = ("chaos.start",) if mutant else ("outbox",)
        worker = (*start, "worker", "--app", "apps.failover:orders", "--lease", str(LEASE), "--grace", "3")
        for name, way in WORKERS.items():
            self.engine.start(name, *worker, OUTBOX_DSN=ways[way], CHAOS_MUTANT=mutant)
        self.engine.start("consumer", "apps.failover", OUTBOX_DSN=ways["name"], **broker)
        wait_for(lambda: _has_queue(amqp), what="the consumer has its queue")
        for number in (1, 2):
            relay = (*start, "relay", "--exchange", EXCHANGE)
            self.engine.start(f"relay {number}", *relay, OUTBOX_DSN=ways["name"], CHAOS_MUTANT=mutant, **broker)
        self.engine.watch()
        self.clients = Clients(self.pair.dsn(DATABASE, OWNER), folder / "acknowledged", clients)

    @property
    def dsn(self) -> str:
        """The primary, not by its name."""
        return self.pair.primary.dsn(DATABASE, OWNER)

    def back_at_work(self, since: float, within: float = BACK_WITHIN) -> tuple[dict[str, float], list[str]]:
        """Waits until everything has worked on the primary since then; returns after how many seconds, and what has not."""
        back: dict[str, float] = {}
        wanted = {*WORKERS, "consumer", "relay"}
        probes: dict[str, float] = {}
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            while (missing := wanted - set(back)) and time.time() < since + within:
                # Something to do for all of them, which no client has to bring.
                probe = f"p{time.time():.3f}"
                orders.submit(conn, probe, {})
                probes[probe] = time.time()
                message = "INSERT INTO outbox.messages (topic, payload) VALUES ('probe', jsonb_build_object('entity', %s::text))"
                conn.execute(message, (f"m{probe}",))
                for table, kind in (("inside", "worker"), ("consumed", "consumer")):
                    names = {pid: name for name, pid in self.engine.processes(kind).items()}
                    for pid, at in conn.execute(FIRST.format(table=table).encode(), (since,)):
                        if pid in names:
                            back.setdefault(names[pid], max(0.0, at - since))
                arrivals = (each for each in reversed(self.tap.arrivals) if each.at >= since)
                if ats := [each.at for each in arrivals if each.payload["entity"].removeprefix("m") in probes]:
                    back.setdefault("relay", min(ats) - since)
                time.sleep(PROBES_EVERY)
        return back, sorted(missing)

    def done(self) -> set[str]:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            ended = "SELECT entity_id FROM outbox.workflow_states WHERE current_status = 'DONE'"
            return {entity for (entity,) in conn.execute(ended)}

    def consumed(self) -> set[str]:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return {entity for (entity,) in conn.execute("SELECT entity FROM world.consumed")}

    def sent(self) -> set[str]:
        return {arrival.payload["entity"] for arrival in list(self.tap.arrivals)}


def run(
    count: int,
    *,
    amqp: str,
    folder: Path,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    clients: int = 4,
    say: Callable[[str], None] = lambda words: None,
    mutant: str = "",
    broken: Callable[[Any], None] = lambda conn: None,
) -> Result:
    """Does that many failovers, of each kind in turn as far as it goes, in an order by the seed.

    `mutant` is what the engine's processes are broken by (see mutants.py), and `broken` breaks the database.
    """
    order = [kinds[number % len(kinds)] for number in range(count)]
    random.Random(f"failovers/{seed}").shuffle(order)
    result = Result()
    with ExitStack() as stack:
        stage = Stage(folder, amqp, stack, clients, mutant, broken)
        _, missing = stage.back_at_work(time.time(), DEADLINE)
        assert not missing, f"before any failover: {', '.join(missing)} did not begin to work, see {folder}"
        for kind in order:
            result.failovers.append(_fail_over(stage, kind))
            say(_line(result.failovers[-1]))
        stage.clients.end()
        _count(stage, result)
    return result


def _fail_over(stage: Stage, kind: str) -> Failover:
    failover = Failover(kind, time.time())
    FAILOVERS[kind](stage.pair)
    failover.at = time.time()
    failover.back, failover.missing = stage.back_at_work(failover.at)
    stage.pair.rejoin()
    # The next one begins where all is well: what hung until now was cut off with the server that it hung at.
    stage.back_at_work(time.time())
    return failover


def _count(stage: Stage, result: Result) -> None:
    acknowledged = dict(stage.clients.acknowledged)
    assert set(stage.clients.file.read_text().split()) == set(acknowledged)
    before, still = (-1, -1, -1), time.monotonic()
    while time.monotonic() < still + STANDSTILL:
        done, consumed, sent = stage.done(), stage.consumed(), stage.sent()
        if acknowledged.keys() <= done and done <= sent and done <= consumed:
            break
        if before != (before := (len(done), len(consumed), len(sent))):
            still = time.monotonic()
        time.sleep(0.2)
    done, consumed, sent = stage.done(), stage.consumed(), stage.sent()

    def kind_of(entity: str) -> str:
        at = acknowledged.get(entity, math.inf)
        return next((each.kind for each in reversed(result.failovers) if each.began <= at), "before")

    result.acknowledged = Counter(map(kind_of, acknowledged))
    result.lost = {entity: kind_of(entity) for entity in acknowledged if entity not in done & consumed}
    result.not_sent = done - sent
    result.again = stage.clients.again
    ids = [arrival.message_id for arrival in stage.tap.arrivals]
    result.sent_twice = len(ids) - len(set(ids))
    result.ended = stage.engine.ended
    with psycopg.connect(stage.dsn) as conn:
        result.twice = {entity: kind_of(entity) for (entity,) in conn.execute(TWICE.encode())}


def _has_queue(amqp: str) -> bool:
    try:
        with channel(amqp) as opened:
            opened.queue_declare(QUEUE, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    return True


def quantile(values: Iterable[float], share: float) -> float:
    found = sorted(values)
    return found[math.ceil(share * len(found)) - 1] if found else math.nan


def _line(failover: Failover) -> str:
    back = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(failover.back.items()))
    missing = f"; not within {BACK_WITHIN:.0f} s: {', '.join(failover.missing)}" if failover.missing else ""
    return f"{failover.kind}: {back}{missing}"


def table(result: Result) -> str:
    """Returns the figures of each kind and of all, as a table in Markdown."""
    head = (
        "| kind | failovers | acknowledged | lost | effects twice | workers back, p50 / p99 | consumer | relay | not back |",
        "|---|---|---|---|---|---|---|---|---|",
    )
    by_kind: dict[str, list[Failover]] = defaultdict(list)
    for failover in result.failovers:
        by_kind[failover.kind].append(failover)
    lines = [_row(kind, by_kind[kind], result, [kind]) for kind in KINDS if kind in by_kind]
    return "\n".join([*head, *lines, _row("**all**", result.failovers, result, ["before", *KINDS])])


def _row(name: str, failovers: list[Failover], result: Result, kinds: list[str]) -> str:
    def back(*of: str) -> str:
        seconds = [each.back.get(one, BACK_WITHIN) for each in failovers for one in of]
        return f"{quantile(seconds, 0.5):.1f} / {quantile(seconds, 0.99):.1f} s"

    acknowledged = sum(result.acknowledged[kind] for kind in kinds)
    lost = sum(kind in kinds for kind in result.lost.values())
    twice = sum(kind in kinds for kind in result.twice.values())
    missing = sum(len(each.missing) for each in failovers)
    figures = (
        name,
        len(failovers),
        f"{acknowledged:,}",
        lost,
        twice,
        back(*WORKERS),
        back("consumer"),
        back("relay"),
        missing,
    )
    return f"| {' | '.join(map(str, figures))} |"


@click.command()
@click.argument("count", type=click.IntRange(min=1), default=10)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only this kind; may be given again.")
@click.option("--seed", type=int, help="Of the order of the kinds; default: at random, and printed.")
@click.option("--clients", default=4, show_default=True, help="Clients that submit, each up to five a second.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the logs of the processes in this folder.")
def main(count: int, kinds: tuple[str, ...], seed: int | None, clients: int, keep: Path | None) -> None:
    """Fail over COUNT times. Exit 1 if anything acknowledged was lost, not sent, or had its effect twice."""
    seed = random.randrange(1_000_000) if seed is None else seed
    click.echo(f"{count} failovers, seed {seed}")
    with ExitStack() as stack:
        broker = Broker()
        stack.callback(broker.remove)
        broker.start()
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        result = run(
            count, amqp=broker.url, folder=folder, kinds=kinds or KINDS, seed=seed, clients=clients, say=click.echo
        )
    click.echo(table(result))
    click.echo(
        f"{result.again} duplicates acknowledged, {result.sent_twice} messages sent twice, {len(result.not_sent)} never; "
        f"{len(result.ended)} processes ended by themselves"
    )
    for what, found in (("lost", result.lost), ("twice", result.twice)):
        for entity, kind in list(found.items())[:SHOWN]:
            click.echo(f"{what}: {entity}, acknowledged after {kind}")
    for words in result.ended:
        click.echo(words)
    sys.exit(not result.ok)


if __name__ == "__main__":
    main()
