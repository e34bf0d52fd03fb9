"""Injects faults into a run and undoes them. A new fault is a generator and a line in FAULTS.

Each fault does its harm, yields how many seconds to wait, and heals what it did. Faults come alone or in pairs.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg

from kit.replication import FAILOVERS, Pair
from kit.servers import wait_for
from outbox.messages.target import LEASE as RELAY_LEASE

from . import failovers
from .cast import LEASE, WITNESS, Cast, Role

Fault = Callable[[Cast, random.Random], Iterator[float]]


def kill_points(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Tells every started process to kill itself at a point of its own."""
    cast.deadly = 1.0
    for role in cast.roles:
        if not role.doomed:
            cast.kill(role)
    yield dice.uniform(8, 15)
    cast.deadly = 0.0


def kill_9(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Sends SIGKILL to some process, several times."""
    for _ in range(dice.randint(3, 6)):
        cast.kill(dice.choice(cast.roles))
        yield dice.uniform(0.2, 1.0)


def deploy(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Sends SIGTERM to all processes, one after the other."""
    for role in cast.roles:
        cast.terminate(role)
        yield 0.3


def renamed_status(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Deploys a version that renames statuses, in which workflows wait. Workers of the other version go on for a while."""
    version = "second" if cast.version == "first" else "first"
    began = time.monotonic()
    while not cast.deploy(version):  # a transaction was open, or another fault came in between
        if time.monotonic() > began + DEPLOYING:
            raise TimeoutError("no deploy has worked: see deploy.log")
        yield 0.5
    yield dice.uniform(1.0, 4.0)
    for role in cast.of("worker"):
        cast.terminate(role)
        yield 0.5


DEPLOYING = 120.0
"""Seconds in which one of several tries to deploy works, whatever other fault there is."""


def freeze(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Sends SIGSTOP to one or two processes, for less or more than a lease, then SIGCONT."""
    frozen: list[Role] = dice.sample(cast.roles, dice.randint(1, 2))
    pids = [(role.popen, role.popen.pid) for role in frozen if role.popen is not None]
    for popen, _ in pids:
        popen.send_signal(signal.SIGSTOP)
    try:
        yield dice.choice([0.3, 0.8, 1.5, 2.2]) * LEASE
    finally:
        for popen, _ in pids:
            popen.send_signal(signal.SIGCONT)


def relay_frozen(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Stops the relay that holds the name (SIGSTOP) until the other one takes it over, then sends SIGCONT."""
    with cast.admin() as conn:
        (owner,) = conn.execute("SELECT max(owner) FROM outbox.relays").fetchone() or (None,)
    leader = [role.popen for role in cast.roles if role.popen and owner and owner.endswith(f":{role.popen.pid}")]
    for popen in leader:
        popen.send_signal(signal.SIGSTOP)
    try:
        yield RELAY_LEASE * dice.uniform(1.1, 1.6)
    finally:
        for popen in leader:
            popen.send_signal(signal.SIGCONT)


def postgres_restart(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Stops the server as by a crash, or kills its postmaster, and starts it again."""
    for _ in range(dice.randint(1, 2)):
        if dice.random() < 0.5:
            cast.postgres.stop("immediate")
        else:
            cast.postgres.kill()
        try:
            yield dice.uniform(0.0, 2.0)
        finally:
            cast.postgres.start()
        yield dice.uniform(0.5, 3.0)


def postgres_kill(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Kills the postmaster, and all its processes with it, in the middle of their work."""
    yield dice.uniform(2.0, 4.0)
    cast.postgres.kill()
    yield 0.2
    cast.postgres.start()


def disk_full(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Fills the disk with Postgres' data and log: Postgres refuses, or panics and can't start again."""
    assert cast.volume is not None, "this fault needs a configuration with a disk"
    cast.volume.fill()
    try:
        yield dice.uniform(3.0, 8.0)
    finally:
        cast.volume.free()
        cast.postgres.recover()
    yield 5.0


def sessions(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Terminates random engine sessions, or cancels their statements, five a second."""
    for _ in range(20):
        do = dice.choice(["pg_terminate_backend", "pg_cancel_backend"])
        victim = (
            f"SELECT {do}(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'outbox%%' "
            "ORDER BY random() LIMIT 1) AS victim"
        )
        with contextlib.suppress(psycopg.Error), cast.admin() as admin:
            admin.execute(victim.encode())
        yield 0.2


def buried(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Has workers declared dead while their handlers run: sets back their heartbeat, or deletes their row."""
    chosen = "(SELECT id FROM outbox.workers ORDER BY random() LIMIT 1)"
    for _ in range(5):
        back = f"UPDATE outbox.workers SET beat_at = beat_at - interval '1 hour' WHERE id = {chosen}"
        gone = f"DELETE FROM outbox.workers WHERE id = {chosen}"
        with contextlib.suppress(psycopg.Error), cast.admin() as admin:
            admin.execute((back if dice.random() < 0.7 else gone).encode())
        yield dice.uniform(0.3, 2.0)


HOLD = """
    SELECT w.id FROM outbox.workflow_states AS w JOIN outbox.jobs AS j ON j.workflow_id = w.id
    WHERE j.stage IS NOT NULL ORDER BY random() LIMIT 30 FOR UPDATE OF w SKIP LOCKED
"""
# Changes that workers commit in batches. A handler's own transaction and an in-progress status are committed elsewhere.
DONE = """
    SELECT count(*) FROM outbox.state_changes
    WHERE actor LIKE 'worker-%' AND to_status IN ('CHECKED', 'REVIEW', 'APPROVED', 'DONE')
"""


def held_rows(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Holds rows of workflows in an open transaction of another session, again and again. All other work must go on."""
    with cast.admin() as holder, holder.transaction():
        for _ in range(8):
            holder.execute(HOLD.encode())
            yield 0.5
        yield 3.0  # not only one batch must be stuck: the others must have met these rows, too
        before = holder.execute(DONE.encode()).fetchone()
        for _ in range(20):
            yield 1.0
            if holder.execute(DONE.encode()).fetchone() != before:
                return
        cast.held_up.append("no worker has committed a batch while another session held some rows")


TOUCHING = """
    CREATE OR REPLACE FUNCTION world.touch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF random() < 0.7 THEN
            UPDATE outbox.workflow_states SET metadata = metadata || jsonb_build_object('touched', random())
            WHERE id = NEW.workflow_id;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER touch AFTER INSERT ON world.outside FOR EACH ROW EXECUTE FUNCTION world.touch()
"""


# Those that are at work in transactions of their own handlers. A statement of it meets only some of those that share one.
TOUCHED = """
    WITH touched AS MATERIALIZED (
        SELECT w.id FROM outbox.jobs AS j JOIN outbox.workflow_states AS w ON w.id = j.workflow_id
        WHERE j.stage = 'act' AND j.owner IS NOT NULL AND random() < 0.2
        ORDER BY w.id FOR NO KEY UPDATE OF w SKIP LOCKED
    )
    UPDATE outbox.workflow_states AS w SET metadata = w.metadata || jsonb_build_object('touched', random())
    FROM touched WHERE w.id = touched.id
"""


def touched_data(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Data are changed by somebody else during most attempts, after these have had their effect, or before it counts."""
    with cast.admin() as admin:
        admin.execute(TOUCHING.encode())
    try:
        with cast.admin() as admin:
            for _ in range(dice.randint(40, 80)):
                admin.execute(TOUCHED.encode())
                yield 0.1
    finally:
        with cast.admin() as admin:
            admin.execute("DROP TRIGGER touch ON world.outside")


REFUSING = """
    CREATE OR REPLACE FUNCTION world.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.current_status = 'REVIEW' AND world.is_refused(NEW.id) THEN RAISE EXCEPTION 'refused'; END IF;
        RETURN NEW;
    END $$;
    CREATE OR REPLACE FUNCTION world.is_refused(id uuid) RETURNS boolean LANGUAGE sql IMMUTABLE
    RETURN hashtext(id::text) % 5 = 0;
    CREATE TRIGGER refuse BEFORE UPDATE ON outbox.workflow_states FOR EACH ROW EXECUTE FUNCTION world.refuse()
"""
# Deadlines that have passed: of rows that are refused, or of others.
OVERDUE = """
    SELECT count(*) FROM outbox.jobs
    WHERE stage IS NULL AND deadline < now() - interval '1 second' AND world.is_refused(workflow_id) = %s
"""
FIRED = "SELECT count(*) FROM outbox.state_changes WHERE to_status = 'EXPIRED'"


def refused_rows(cast: Cast, dice: random.Random) -> Iterator[float]:
    """A trigger of somebody else's keeps some workflows where they wait. The deadlines of all others fire."""

    def count(query: str, *values: bool) -> int:
        found = admin.execute(query.encode(), values).fetchone()
        return int(found[0]) if found else 0

    with cast.admin() as admin:
        admin.execute(REFUSING.encode())
        try:
            while not count(OVERDUE, True):
                yield 0.5
            before = count(FIRED)
            for _ in range(30):
                yield 1.0
                if count(FIRED) > before:
                    return
            if count(OVERDUE, False):
                cast.held_up.append("no deadline has fired while a trigger refused those of some workflows")
        finally:
            admin.execute("DROP TRIGGER refuse ON outbox.workflow_states")


def hung_threads(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Makes plain functions hang in their threads until after their timeout, or until their worker has no slot left."""
    return _mischief(cast, dice, "hang")


def blocked_loop(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Makes handlers block the event loop of their worker, for less or more than its lease."""
    return _mischief(cast, dice, "block")


def reckless_handlers(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Makes handlers fork children and end them, and start tasks that exit."""
    return _mischief(cast, dice, "be reckless")


def _mischief(cast: Cast, dice: random.Random, what: str) -> Iterator[float]:
    """Makes handlers do this for some seconds."""
    cast.mischief(what)
    try:
        yield dice.uniform(4.0, 10.0)
    finally:
        cast.mischief(None)


NOTIFYING = """
    SELECT pg_get_functiondef(p.oid) FROM pg_proc AS p
    WHERE p.pronamespace = 'outbox'::regnamespace AND p.prosrc LIKE '%pg_notify(%'
"""


def notify_lost(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Suppresses all notifications."""
    with cast.admin() as admin:
        notifying = [row[0] for row in admin.execute(NOTIFYING.encode())]
        assert notifying, "nothing notifies: this fault does nothing"
        for definition in notifying:
            admin.execute(definition.replace("pg_notify(", "concat(").encode())
    try:
        yield dice.uniform(3.0, 8.0)
    finally:
        with cast.admin() as admin:
            for definition in notifying:
                admin.execute(definition.encode())


def cut_at_commit(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Lets COMMIT arrive and cuts the connection before the answer; resets connections at any point."""
    cast.to_postgres.cutting = lambda: dice.random() < 0.2
    try:
        for _ in range(4):
            yield dice.uniform(0.5, 1.5)
            cast.to_postgres.cut_all()
    finally:
        cast.to_postgres.cutting = lambda: False


def black_hole(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Lets nothing through to Postgres, without notice. Afterwards connections go on, or are reset."""
    cast.to_postgres.silent = True
    try:
        yield dice.choice([1.0, 3.0, 8.0])
    finally:
        if dice.random() < 0.5:
            cast.to_postgres.cut_all()
        cast.to_postgres.silent = False


def half_open(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Lets requests through to Postgres but no answers, then resets the connections."""
    cast.to_postgres.half_open = True
    try:
        yield dice.choice([1.0, 3.0, 8.0])
    finally:
        cast.to_postgres.cut_all()
        cast.to_postgres.half_open = False


def read_only(cast: Cast, dice: random.Random) -> Iterator[float]:
    """The name leads to a standby for a while, as after a switchover that a balancer is slow to see; lines stay."""
    standby, target = cast.standby(), cast.to_postgres.target
    cast.to_postgres.target = standby.port
    cast.to_postgres.cut_all()
    try:
        yield dice.uniform(1.0, 3.0)
    finally:
        cast.to_postgres.target = target


def broker_restart(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Kills the broker and starts it again."""
    cast.broker.kill()
    try:
        yield dice.uniform(0.0, 3.0)
    finally:
        cast.broker.start()


def broker_frozen(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Silences the broker."""
    cast.broker.freeze()
    try:
        yield dice.choice([1.0, 4.0, 10.0])
    finally:
        cast.broker.thaw()


def broker_alarm(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Makes the broker block all publishers."""
    cast.broker.alarm(True)
    try:
        yield dice.uniform(2.0, 6.0)
    finally:
        cast.broker.alarm(False)


def broker_refuses(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Makes a queue full: messages are refused, and parked after a while."""
    full = '{"max-length": 0}'
    cast.broker.ctl("set_policy", "full", f"^{WITNESS}$", full, "--apply-to", "queues")
    try:
        yield dice.uniform(2.0, 5.0)
    finally:
        cast.broker.ctl("clear_policy", "full")


def broker_unbound(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Removes all bindings: messages are routed nowhere."""
    with cast.exchange() as (channel, behind, exchange):
        channel.exchange_unbind(behind, exchange, "#")
    try:
        yield dice.uniform(1.0, 3.0)
    finally:
        with cast.exchange() as (channel, behind, exchange):
            channel.exchange_bind(behind, exchange, "#")


def broker_lines(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Resets or silences connections to the broker."""
    for _ in range(3):
        cast.to_broker.silent = dice.random() < 0.5
        yield dice.uniform(0.5, 2.0)
        cast.to_broker.cut_all()
        cast.to_broker.silent = False
        yield dice.uniform(0.2, 1.0)


def broker_nodes_killed(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Kills one node of a cluster or two: the others confirm nothing then. Starts them again."""
    assert cast.cluster is not None, "this fault needs a configuration with a cluster"
    for node in dice.sample(cast.cluster.nodes[1:], dice.randint(1, 2)):
        node.crash()
    try:
        yield dice.uniform(1.0, 6.0)
    finally:
        cast.cluster.recover()


def broker_node_frozen(cast: Cast, dice: random.Random) -> Iterator[float]:
    """Silences a node of a cluster. One that was silent for long is started again, as its cluster has gone on without."""
    assert cast.cluster is not None, "this fault needs a configuration with a cluster"
    node, seconds = dice.choice(cast.cluster.nodes[1:]), dice.choice([1.0, 2.0, 8.0])
    node.freeze()
    try:
        yield seconds
    finally:
        if seconds > 2:
            node.crash()
        cast.cluster.recover()


def detached(pair: Pair) -> Iterator[float]:
    """Lets the standby fall behind for some seconds, in which no COMMIT is answered, and promotes it."""
    pair.detach()
    yield 5.0
    pair.kill()
    pair.promote()


def failing_over(kind: str) -> Fault:
    """Returns the fault that fails the pair over in one of the ways of kit/replication.py, and makes it whole again."""

    def failover(cast: Cast, dice: random.Random) -> Iterator[float]:
        assert cast.pair is not None, "this fault needs a configuration with a pair"
        wait_for(cast.pair.has_slots, what="the standby has the witness's slot")
        try:
            if kind == "detached":
                yield from detached(cast.pair)
            else:
                FAILOVERS[kind](cast.pair)
            yield dice.uniform(2.0, 5.0)
        finally:
            cast.pair.rejoin()

    return failover


FAILING_OVER = {f"failover-{kind}": failing_over(kind) for kind in (*failovers.KINDS, "detached")}
"""The ways in which nothing is lost that was acknowledged."""

FAULTS: dict[str, Fault] = FAILING_OVER | {
    fault.__name__.replace("_", "-"): fault
    for fault in (
        kill_points, kill_9, deploy, renamed_status, freeze, relay_frozen, buried, hung_threads, blocked_loop, reckless_handlers,
        postgres_restart, postgres_kill, disk_full, sessions, notify_lost, held_rows, touched_data, refused_rows,
        cut_at_commit, black_hole, half_open, read_only,
        broker_restart, broker_frozen, broker_alarm, broker_refuses, broker_unbound, broker_lines,
        broker_nodes_killed, broker_node_frozen,
    )
}  # fmt: skip
# Two of these at the same time would undo each other's harm, or fail by themselves.
SAME = [
    {"hung-threads", "blocked-loop", "reckless-handlers"},
    {"postgres-restart", "postgres-kill", "disk-full", "sessions", "buried", "notify-lost", "touched-data", *FAILING_OVER},
    {
        "broker-restart", "broker-frozen", "broker-alarm", "broker-refuses", "broker-unbound", "broker-nodes-killed",
        "broker-node-frozen",
    },
]  # fmt: skip

# Runs alone: beside another fault it could not be told which of them stops the others.
ALONE = {"held-rows", "refused-rows"}


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that was injected, and when it began and was healed."""

    names: tuple[str, ...]
    began: float
    healed: float


LONGEST = 600.0
"""Most seconds by which a run is extended until enough has happened in it."""


class Nemesis:
    """Injects faults, one or two at a time, until the time is over. All is healed when `run` returns."""

    def __init__(self, cast: Cast, seed: int, names: tuple[str, ...], say: Callable[[str], None]) -> None:
        self.cast, self.say = cast, say
        needs: dict[str, object] = {
            **dict.fromkeys(FAILING_OVER, cast.pair),
            "disk-full": cast.volume,
            "broker-nodes-killed": cast.cluster,
            "broker-node-frozen": cast.cluster,
        }
        self.names = names or tuple(name for name in FAULTS if name not in needs or needs[name])
        self.random = random.Random(f"nemesis/{seed}")
        self.injected: list[Injected] = []
        self.failed: list[str] = []

    def run(self, until: float, enough: Callable[[], bool] = lambda: True) -> None:
        """Injects faults until the time is over, and longer if this machine is too busy for that to be enough."""
        while time.time() < until or (not enough() and time.time() < until + LONGEST):
            names = self._choose()
            self.say(f"fault: {' and '.join(names)}")
            began = time.time()
            doing = [threading.Thread(target=self._do, args=(name,)) for name in names]
            for thread in doing:
                thread.start()
            for thread in doing:
                thread.join()
            self.injected.append(Injected(names, began, time.time()))
            time.sleep(self.random.uniform(0.5, 2.0))

    def _choose(self) -> tuple[str, ...]:
        first = self.random.choice(self.names)
        others = [name for name in self.names if name != first and not any({name, first} <= alike for alike in SAME)]
        others = [] if first in ALONE else [name for name in others if name not in ALONE]
        if not others or self.random.random() < 0.5:
            return (first,)
        return (first, self.random.choice(others))

    def _do(self, name: str) -> None:
        fault = FAULTS[name](self.cast, random.Random(self.random.random()))
        try:
            for seconds in fault:
                time.sleep(seconds)
        except Exception as error:
            self.failed.append(f"{name}: {error!r}")
            raise
        finally:
            fault.close()
