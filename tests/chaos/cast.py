"""Manages the servers and processes of a run: starts them, restarts those that die, and ends them, whatever happens."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from kit.broker import Broker, channel
from kit.broker_cluster import BrokerCluster
from kit.forked import Popen
from kit.pooler import Pooler
from kit.proxy import Proxy
from kit.replication import Pair
from kit.servers import DEADLINE, PostgresServer, wait_for
from outbox.database import migrations
from outbox.definition import deploy

from .app import GUEST, chaos
from .consumer import EXCHANGE as BEHIND
from .volume import Volume
from .wal import Decoder

TESTS = Path(__file__).parent.parent
DATABASE, OWNER = "chaos", "outbox_owner"
WITNESS = "chaos_witness"
EXCHANGE = "chaos"
"""The exchange to which relays publish. One binding, which a fault may cut, leads to that of consumers and witness."""
LEASE = 4.0
LIMITS = "connect_timeout=5&keepalives_idle=2&keepalives_interval=1&keepalives_count=3&tcp_user_timeout=5000"
KILL_POINTS = {
    "worker": ("K1", "K2", "K3", "K4", "K5", "K7", "K8", "K14", "K15", "K16"),
    "relay": ("K9", "K10"),
    "consumer": ("K13",),
}
"""Where each kind of process may be told to kill itself."""

WORLD = f"""
    CREATE SCHEMA world AUTHORIZATION outbox_owner;
    SET ROLE outbox_owner;
    CREATE TABLE world.outside (workflow_id uuid, stage text, attempt int, key text, at timestamptz DEFAULT now());
    CREATE TABLE world.inside (workflow_id uuid, stage text, attempt int, found text, at timestamptz DEFAULT now());
    CREATE TABLE world.consumed (message_id uuid, at timestamptz DEFAULT now());
    RESET ROLE;
    CREATE ROLE {GUEST};
    GRANT {GUEST} TO outbox_owner;
    GRANT USAGE ON SCHEMA world TO {GUEST};
    GRANT INSERT ON world.inside TO {GUEST};
"""


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration of a run. `faults` chooses the nemesis' faults (see nemesis.FAULTS); empty: all."""

    name: str
    postgres: str = "18"
    strict: bool = True
    workers: int = 3
    notify: bool = True
    faults: tuple[str, ...] = ()
    server: dict[str, str] = field(default_factory=dict)
    pooler: bool = False
    disk: int | None = None
    """Megabytes of a file system of its own for Postgres; None: it shares the machine's."""
    cluster: bool = False
    """Three RabbitMQ nodes that are one cluster. The processes know all of them; the harness stays at the first one."""
    failover: bool = False
    """A synchronous pair of Postgres servers, which faults may fail over. Every second process knows both hosts, the others
    a name that moves."""
    other: str | None = None
    """A folder with another release of Outbox, which every second worker runs."""
    mutant: str | None = None
    broken: Callable[[psycopg.Connection[Any]], None] = lambda conn: None
    """What a mutant does to the database."""


@dataclass(slots=True)
class Role:
    """A process that always runs: when it dies, it is restarted."""

    kind: str
    arguments: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    popen: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    # Why its death is expected: the point at which it is to kill itself; SIGKILL; SIGTERM.
    point: str | None = None
    killed: bool = False
    stopped: bool = False
    frozen: bool = False
    begun: float = 0.0

    @property
    def doomed(self) -> bool:
        return self.point is not None or self.killed or self.stopped


@dataclass(frozen=True, slots=True)
class Death:
    """A process that was killed: at which point, when, and its worker's name in the engine."""

    kind: str
    point: str
    begun: float
    at: float
    worker: str | None


class Cast:
    """Everything that a run needs. Call `start` and `end`."""

    def __init__(self, config: Config, folder: Path, seed: int, trouble: float) -> None:
        self.config, self.folder, self.trouble = config, folder, trouble
        self.random = random.Random(f"cast/{seed}")
        self.seed = seed
        settings = {"wal_level": "logical", "max_replication_slots": "4", **config.server}
        self.volume = Volume(folder, config.disk) if config.disk else None
        volume = self.volume.path if self.volume else Path("/tmp")
        self.pair = Pair(config.postgres, failover_slots=True, settings=settings) if config.failover else None
        self._lone = None if self.pair else PostgresServer(config.postgres, settings=settings, volume=volume)
        self.cluster = BrokerCluster() if config.cluster else None
        self.broker = self.cluster.nodes[0] if self.cluster else Broker()
        self.pooler: Pooler | None = None
        self._standby: PostgresServer | None = None
        self.roles: list[Role] = []
        self.deaths: list[Death] = []
        self.held_up: list[str] = []  # what else was held up by rows that another session held
        self.exits: list[str] = []  # of processes that nothing had killed
        self.not_started = 0  # processes that found no server, reported it, and are started again
        self.version = "first"  # of the application; see app.py
        self.deadly = 0.0  # the share of started processes that are told to kill themselves
        self.calls = folder / "calls.jsonl"  # of the clients,
        self.answers = folder / "answers.jsonl"  # of the person who is asked about effects,
        self.book = folder / "book.jsonl"  # and the bank's
        self.clients: subprocess.Popen[bytes] | None = None
        self.person: subprocess.Popen[bytes] | None = None
        self._watching = True
        self._turn = threading.RLock()

    # The servers.

    @property
    def postgres(self) -> PostgresServer:
        """The server that takes writes."""
        found = self.pair.primary if self.pair else self._lone
        assert found is not None
        return found

    def start(self) -> None:
        if self.pair is not None:
            self.pair.__enter__()
        else:
            self.postgres.start()
        (self.cluster or self.broker).start()
        with self.postgres.admin() as admin:
            admin.execute(f"CREATE ROLE {OWNER} LOGIN".encode())
            admin.execute(f"CREATE DATABASE {DATABASE}".encode())
        with self.admin() as admin:
            admin.execute(f"CREATE SCHEMA outbox AUTHORIZATION {OWNER}".encode())
            admin.execute(WORLD.encode())
        migrations.apply(self.direct)
        with psycopg.connect(self.direct, autocommit=True) as conn:
            deploy.deploy(conn, chaos)
            self.config.broken(conn)
        self.decoder = Decoder(self.postgres.dsn(DATABASE))
        self.decoder.make_slot(failover=self.pair is not None)
        with channel(self.broker.url) as opened:
            for exchange in (EXCHANGE, BEHIND):
                opened.exchange_declare(exchange, "topic", durable=True)
            opened.exchange_bind(BEHIND, EXCHANGE, "#")
            # A policy that brings both would set the length first and drop what is in the queue.
            kind = {"x-queue-type": "quorum"} if self.cluster else {}
            opened.queue_declare(WITNESS, durable=True, arguments={"x-overflow": "reject-publish", **kind})
            opened.queue_bind(WITNESS, BEHIND, "#")
        if self.config.pooler:
            self.pooler = Pooler(self.postgres, OWNER, size=20).start()
        behind = self.pooler.port if self.pooler else self.postgres.port
        self.to_postgres = self.pair.name if self.pair else Proxy(behind)
        self.to_broker = Proxy(self.broker.port)

    def standby(self) -> PostgresServer:
        """A server that follows, and can only be read; made when it is first asked for."""
        if self._standby is None:
            self._standby = PostgresServer(self.postgres.version, copy_of=self.postgres)
            source = f"host={self.postgres.host} port={self.postgres.port} user=postgres"
            self._standby.configure(primary_conninfo=source)
            owner = self._standby.data.stat()
            signal_file = self._standby.data / "standby.signal"
            signal_file.touch()
            os.chown(signal_file, owner.st_uid, owner.st_gid)
            self._standby.start()
        return self._standby

    def admin(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.postgres.dsn(DATABASE), autocommit=True, connect_timeout=5)

    @property
    def direct(self) -> str:
        """The DSN of the engine's owner, not through the proxy."""
        return self.postgres.dsn(DATABASE, OWNER)

    @property
    def dsn(self) -> str:
        return f"postgresql://{OWNER}@127.0.0.1:{self.to_postgres.port}/{DATABASE}?{LIMITS}"

    def _hosts(self, number: int) -> dict[str, str]:
        """Returns what has every second process know both hosts of a pair."""
        return {"OUTBOX_DSN": self.pair.hosts(DATABASE, OWNER, f"?{LIMITS}")} if self.pair and number % 2 else {}

    @property
    def amqp(self) -> str:
        if self.cluster:  # the second node leads the queues, and may be killed
            return self.cluster.urls("%2F", first=self.cluster.nodes[1], options="?heartbeat=3")
        return f"amqp://guest:guest@127.0.0.1:{self.to_broker.port}/%2F?heartbeat=3"

    @contextlib.contextmanager
    def exchange(self) -> Iterator[Any]:
        """Yields what is needed to bind the exchange behind to that of the relays: a channel and both names."""
        with channel(self.broker.url) as opened:
            yield opened, BEHIND, EXCHANGE

    def mischief(self, wrong: str | None) -> None:
        """Makes handlers do something wrong now and again, until it is set to None."""
        file = self.folder / "mischief"
        if wrong is None:
            file.unlink(missing_ok=True)
        else:
            file.with_suffix(".new").write_text(wrong)
            file.with_suffix(".new").rename(file)

    def deploy(self, version: str) -> bool:
        """Deploys a version of the application, which processes run that are started from then on. Returns whether it worked."""
        command = ("-m", "chaos.start", "deploy", "--app", "chaos.app:chaos")
        deploying = self._popen(command, self.folder / "deploy.log", {"CHAOS_VERSION": version})
        try:
            done = deploying.wait(DEADLINE) == 0
        except subprocess.TimeoutExpired:
            deploying.kill()
            deploying.wait()
            done = False
        if done:
            (self.folder / "version.new").write_text(version)
            (self.folder / "version.new").rename(self.folder / "version")
            self.version = version
        return done

    # The processes.

    def play(self, rate: float) -> None:
        """Starts all processes, and a thread that watches them."""
        start = ("-m", "chaos.start")
        worker = (*start, "worker", "--app", "chaos.app:chaos", "--lease", str(LEASE), "--grace", "3")
        quiet = () if self.config.notify else ("--no-notify",)
        strict = ("--strict",) if self.config.strict else ()
        self.roles += [Role("consumer", ("-m", "chaos.consumer"), self._hosts(n)) for n in range(2)]
        for role in self.roles:
            self.begin(role)
        self._wait_for_queue()
        relay = (*start, "relay", "--exchange", EXCHANGE, *strict)
        other = {"PYTHONPATH": f"{self.config.other}{os.pathsep}{TESTS}"} if self.config.other else {}
        others = [
            Role("worker", (*worker, *quiet), {**(other if n % 2 else {}), **self._hosts(n)})
            for n in range(self.config.workers)
        ]
        others += [Role("relay", relay, self._hosts(n)) for n in range(2)]
        for role in others:
            self.begin(role)
            self.roles.append(role)
        threading.Thread(target=self._watch, daemon=True).start()
        self.person = self._popen(("-m", "chaos.person", str(self.answers)), self.folder / "person.log", {})
        command = ("-m", "chaos.clients", str(self.calls), str(rate))
        self.clients = self._popen(command, self.folder / "clients.log", {})
        wait_for(lambda: self.calls.exists() and self.calls.stat().st_size, what="the clients begin")

    def begin(self, role: Role) -> None:
        env = dict(role.env)
        role.point = None
        if self.random.random() < self.deadly:
            # Choose the point with the fewest deaths, because some points are passed far more often than others.
            kills = self.kills
            role.point = min(KILL_POINTS[role.kind], key=lambda point: (kills[point], self.random.random()))
            # A consumer passes its point with each message.
            often = [1, 20, 200, 1_000] if role.kind == "consumer" else [1, 2, 5, 20]
            env["OUTBOX_KILL_AT"] = f"{role.point}:{self.random.choice(often)}"
        role.killed = role.stopped = False
        role.log = self.folder / f"{role.kind}-{time.monotonic_ns()}.log"
        role.popen = self._popen(role.arguments, role.log, env)
        role.begun, role.frozen = time.time(), False

    def kill(self, role: Role) -> None:
        """Sends SIGKILL, whatever the process is doing."""
        with self._turn:
            if role.popen is not None and role.popen.poll() is None:
                role.killed = True
                role.popen.kill()

    def terminate(self, role: Role) -> None:
        """Sends SIGTERM, as a deploy does."""
        with self._turn:
            if role.popen is not None and role.popen.poll() is None:
                role.stopped = True
                role.popen.terminate()

    def of(self, *kinds: str) -> list[Role]:
        return [role for role in self.roles if role.kind in kinds]

    def stop_clients(self) -> None:
        """Ends the clients. The person who is asked stays until all is done."""
        self._stop(self.clients, "the clients")

    def _stop(self, popen: subprocess.Popen[bytes] | None, who: str) -> None:
        if popen is not None and popen.poll() is None:
            popen.terminate()
            try:
                popen.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                popen.kill()
                self.exits.append(f"{who} did not end")

    def calm(self) -> None:
        """Ends the deaths: processes that would kill themselves are replaced."""
        with self._turn:
            self.deadly = 0.0
            for role in self.roles:
                if role.doomed and role.popen is not None and role.popen.poll() is None:
                    role.killed = True
                    role.popen.kill()

    def end(self) -> None:
        """Ends everything, in an orderly way where that works."""
        self._watching = False
        self._stop(self.person, "the person")
        with self._turn:
            running = [role for role in self.roles if role.popen is not None and role.popen.poll() is None]
            for role in running:
                assert role.popen is not None
                role.popen.send_signal(signal.SIGCONT)
                role.popen.terminate()
            deadline = time.monotonic() + DEADLINE
            for role in running:
                assert role.popen is not None
                try:
                    code = role.popen.wait(max(0.1, deadline - time.monotonic()))
                    if code != 0 and not (code == 1 and _cut_off(self._words(role))):
                        self.exits.append(f"{role.kind} ended with {code} on SIGTERM: {self._words(role)[-800:]}")
                except subprocess.TimeoutExpired:
                    role.popen.kill()
                    self.exits.append(f"{role.kind} did not end on SIGTERM: {self._words(role)[-800:]}")

    def remove(self) -> None:
        """Removes the servers, too."""
        self._watching = False
        for role in self.roles:
            if role.popen is not None and role.popen.poll() is None:
                role.popen.kill()
        for popen in (self.clients, self.person):
            if popen is not None and popen.poll() is None:
                popen.kill()
        if self.pooler is not None:
            self.pooler.remove()
        (self.cluster or self.broker).remove()
        if self._standby is not None:
            self._standby.remove()
        for servers in (self.pair, self._lone):
            if servers is not None:
                servers.remove()
        if self.volume is not None:
            self.volume.remove()

    @property
    def kills(self) -> Counter[str]:
        """How many processes were killed at each point."""
        return Counter(death.point for death in self.deaths if death.point != "SIGTERM")

    def _watch(self) -> None:
        while self._watching:
            with self._turn:
                for role in self.roles:
                    if role.popen is not None and (code := role.popen.poll()) is not None and self._watching:
                        self._died(role, code)
                        self.begin(role)
            time.sleep(0.02)

    def _died(self, role: Role, code: int) -> None:
        said = self._words(role)
        served = re.findall(r"worker (\d+) serves|relaying|standing by|takes from queue", said)
        # Several causes may have been on their way. How the process ended tells which one came first.
        reason = {
            -signal.SIGKILL: "anywhere" if role.killed else role.point,
            -signal.SIGTERM: "SIGTERM" if role.stopped and (not served or "stopped: " in said) else None,  # not at work
            0: "SIGTERM" if role.stopped else None,
            1: "SIGTERM" if role.stopped and _cut_off(said) else None,
        }.get(code)
        if code == 1 and not served and ("connect" in said or "server_login_retry" in said):
            self.not_started += 1
            time.sleep(0.1)
            return
        if code == 1 and "has no slot left" in said:
            return  # as expected when threads hang: another one is started
        if reason is None:
            self.exits.append(f"{role.kind} ended by itself with {code}: {said[-800:]}")
            return
        worker = f"worker-{served[-1]}" if served and served[-1] else None
        self.deaths.append(Death(role.kind, reason, role.begun, time.time(), worker))

    def _words(self, role: Role) -> str:
        return role.log.read_text(errors="replace") if role.log is not None else ""

    def _popen(self, arguments: tuple[str, ...], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
        settings = {
            "PYTHONPATH": str(TESTS),
            "OUTBOX_DSN": self.dsn,
            **({"OUTBOX_LISTEN_DSN": self.direct} if self.pooler else {}),
            "OUTBOX_AMQP_URL": self.amqp,
            "CHAOS_WORLD": self.dsn if self.pair else self.direct,
            "CHAOS_TROUBLE": str(self.trouble),
            "CHAOS_SEED": str(self.seed),
            "CHAOS_MUTANT": self.config.mutant or "",
            "CHAOS_BOOK": str(self.book),
            "CHAOS_MISCHIEF": str(self.folder / "mischief"),
            "CHAOS_VERSION_FILE": str(self.folder / "version"),
            # Mutants and older releases are not what a fork has imported.
            **({"OUTBOX_TEST_EXEC": "1"} if self.config.mutant or self.config.other else {}),
        }
        with log.open("ab") as output:
            return Popen(
                arguments,
                env={**os.environ, **settings, **env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _wait_for_queue(self) -> None:
        wait_for(self._has_queue, what="the consumer makes its queue")

    def _has_queue(self) -> bool:
        from .consumer import QUEUE

        return QUEUE in self.broker.ctl("list_queues", "name")


def _cut_off(said: str) -> bool:
    """Returns whether a stopped process has logged that it left something running, when a handler hangs or blocks."""
    return "though still running: " in said or "the event loop stands still" in said
