"""Two Postgres servers with streaming replication, and what becomes of such a pair.

`Pair.primary` is the server that was promoted last, `Pair.standby` the other one, whatever it does now. The steps of a
failover are methods, and a test takes those that it needs; `FAILOVERS` has the usual sequences by name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from types import MappingProxyType

import psycopg

from kit.proxy import Proxy
from kit.servers import PostgresServer, wait_for

STANDBY = "standby"
"""The name by which a standby is a synchronous one. With `*`, the tool that copies a server would be one, too."""

SMALL = MappingProxyType({"shared_buffers": "16MB", "max_wal_size": "256MB", "wal_keep_size": "256MB"})
"""Settings of a pair. What is kept of the log lets a standby come back that was away; more isn't written in a test."""

SOON = 3.0
"""Seconds in which clients have asked again after a restart."""

QUICK = MappingProxyType({"wal_retrieve_retry_interval": "100ms"})


class Pair:
    """A primary, its standby, and a name that moves: a proxy whose new lines lead to the primary.

    `synchronous`: a COMMIT waits until the standby has it. Otherwise the primary goes on without, as after `detach`.
    `failover_slots`: logical slots made with `failover` go on at the standby, and see nothing that it has not (Postgres
    17 and later).
    """

    def __init__(
        self,
        version: str | None = None,
        *,
        synchronous: bool = True,
        failover_slots: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.synchronous, self.failover_slots = synchronous, failover_slots
        self.primary = PostgresServer(version, settings={**SMALL, **QUICK, **(settings or {})})
        self._settings = settings
        self._servers = [self.primary]
        self._frozen: set[PostgresServer] = set()
        self.name = Proxy(self.primary.port)

    def __enter__(self) -> Pair:
        try:
            self.primary.start()
            self.standby = PostgresServer(self.primary.version, settings=self._settings, copy_of=self.primary)
            self._servers.append(self.standby)
            self._follow()
            return self
        except BaseException:
            self.remove()
            raise

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        self.name.close()
        for server in self._servers:
            self._thaw(server)
            server.remove()

    # How it is reached.

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """By the name that moves."""
        return f"postgresql://{user}@{self.name.host}:{self.name.port}/{database}"

    def hosts(self, database: str = "postgres", user: str = "postgres", options: str = "") -> str:
        """By both hosts, in the order of their making; `options` such as `?target_session_attrs=read-write`."""
        places = ",".join(f"{server.host}:{server.port}" for server in self._servers)
        return f"postgresql://{user}@{places}/{database}{options}"

    # The steps.

    def detach(self) -> None:
        """Let the standby fall behind: from now on it gets nothing. COMMITs wait for it where it is synchronous."""
        self._set(self.standby, primary_conninfo="")
        wait_for(lambda: not self._replicates(), what="the standby has let go of the primary")

    def attach(self) -> None:
        """Let a detached standby catch up."""
        self._set(self.standby, primary_conninfo=self._source())
        wait_for(self._replicates, what="the standby streams again")

    def kill(self) -> None:
        """End the primary as a crash of its host does."""
        self.primary.kill()

    def freeze(self) -> None:
        """Stop the primary, all of its processes, from doing anything. Its kernel still acknowledges what comes."""
        self._frozen.add(self.primary)
        self.primary.send(signal.SIGSTOP)

    def promote(self, *, move: bool = True) -> None:
        """Make the standby the primary, whatever the other one does; `move` the name there, too."""
        self.primary, self.standby = self.standby, self.primary
        self.primary.promote()
        if move:
            self.move()

    def move(self) -> None:
        """Let the name lead to the primary. Lines that are open stay where they are, as with most balancers."""
        self.name.target = self.primary.port

    def switch(self, *, move: bool = True) -> None:
        """Change the roles in good order, with nothing lost: the old primary is a read-only standby afterwards."""
        self.primary.stop("fast")
        self.promote(move=move)
        self._follow()

    def zombie(self, *, alone: bool = True) -> None:
        """Have the old primary back after a failover: writable, on its old timeline.

        `alone`: its COMMITs wait for no standby, and acknowledge what will be lost. Otherwise they wait as before, without
        an end.
        """
        if alone:
            self.standby.configure(synchronous_standby_names="")
        if self.standby in self._frozen:
            self._thaw(self.standby)
            self.standby.send(signal.SIGHUP)
        elif not self.standby.running:
            self.standby.start()
        else:
            self.standby.send(signal.SIGHUP)

    def has_slots(self) -> bool:
        """Whether the standby has all logical slots of the primary, so that they outlive a failover."""
        ready = (
            "SELECT count(*) FROM pg_replication_slots WHERE failover AND NOT temporary AND invalidation_reason IS NULL"
        )
        found = []
        for server in self._servers:
            with server.admin() as admin:
                found.append(admin.execute(ready.encode()).fetchone())
        return found[0] == found[1]

    def rejoin(self) -> None:
        """Make the other server a standby again, if it is none, with a new copy of the primary: what only it had is gone."""
        if self._replicates("sync" if self.synchronous else "%"):
            return
        self._thaw(self.standby)
        if self.standby.running:
            self.standby.stop()
        settings = (self.standby.data / "postgresql.conf").read_text()
        self.standby.copy(self.primary)
        (self.standby.data / "postgresql.conf").write_text(settings)
        self._follow()

    # What they are made of.

    def _follow(self) -> None:
        """Start the standby and wait until it streams."""
        self.standby.configure(primary_conninfo=self._source(), synchronous_standby_names="")
        signal_file = self.standby.data / "standby.signal"
        signal_file.touch()
        owner = self.standby.data.stat()
        os.chown(signal_file, owner.st_uid, owner.st_gid)
        if self.failover_slots:
            self._keep_slots()
        self.standby.start()
        wait_for(self._replicates, what="the standby streams")
        if self.synchronous:
            self._set(self.primary, synchronous_standby_names=STANDBY)
            wait_for(lambda: self._replicates("sync"), what="the standby is a synchronous one")

    def _keep_slots(self) -> None:
        """Have a standby that does not run yet follow the logical slots of the primary, which wait for it."""
        for slot in (self.standby.data / "pg_replslot").iterdir():
            shutil.rmtree(slot)  # of its own time as a primary: it takes over none of the same name
        self.standby.configure(primary_slot_name=STANDBY, hot_standby_feedback="on", sync_replication_slots="on")
        self.standby.configure(synchronized_standby_slots="")
        with self.primary.admin() as admin:
            if not admin.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", (STANDBY,)).fetchone():
                admin.execute("SELECT pg_create_physical_replication_slot(%s, true)", (STANDBY,))
        self._set(self.primary, synchronized_standby_slots=STANDBY)

    def _source(self) -> str:
        place = f"host={self.primary.host} port={self.primary.port} dbname=postgres"
        return f"{place} user=postgres application_name={STANDBY}"

    def _replicates(self, state: str = "%") -> bool:
        look = (
            "SELECT FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming' AND sync_state LIKE %s"
        )
        with self.primary.admin() as admin:
            return admin.execute(look, (STANDBY, state)).fetchone() is not None

    def _set(self, server: PostgresServer, **settings: object) -> None:
        server.configure(**settings)
        server.send(signal.SIGHUP)

    def _thaw(self, server: PostgresServer) -> None:
        if server in self._frozen:
            self._frozen.remove(server)
            server.send(signal.SIGCONT)


def waiting(server: PostgresServer) -> list[int]:
    """Returns the sessions whose COMMIT waits for a standby."""
    with server.admin() as admin:
        found = admin.execute("SELECT array_agg(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").fetchone()
    return found[0] or [] if found else []


def is_primary(server: PostgresServer) -> bool:
    """Whether the server takes commits."""
    try:
        with server.admin() as admin:
            return admin.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
    except psycopg.Error:
        return False


def _kill(pair: Pair) -> None:
    pair.kill()
    pair.promote()


def _freeze(pair: Pair) -> None:
    pair.freeze()
    pair.promote()


def _read_only(pair: Pair) -> None:
    """The name moves last, so what connects meanwhile finds the server that is read-only now."""
    pair.switch(move=False)
    pair.move()


def _zombie(pair: Pair) -> None:
    """Where COMMITs wait for a standby, the zombie's wait, too: without an end, as its standby is the primary now."""
    pair.freeze()
    pair.promote()
    pair.zombie(alone=not pair.synchronous)


def _split(pair: Pair) -> None:
    """Both take commits, and nothing waits: who does not look stays with the old one."""
    pair.promote()
    pair.zombie()


def _behind(pair: Pair) -> None:
    """A restart makes visible what has not been confirmed, as its standby is away; those who ask again must wait, too."""
    pair.detach()
    before = wait_for(lambda: waiting(pair.primary), what="a COMMIT waits for the standby")
    pair.primary.stop()
    pair.primary.start()
    with contextlib.suppress(AssertionError):
        wait_for(lambda: len(waiting(pair.primary)) > len(before), SOON)
    pair.kill()
    pair.promote()


def _asynchronous(pair: Pair) -> None:
    pair.detach()
    pair.kill()
    pair.promote()


FAILOVERS: Mapping[str, Callable[[Pair], None]] = MappingProxyType(
    {
        "kill": _kill,
        "freeze": _freeze,
        "promote": Pair.promote,
        "read-only": _read_only,
        "zombie": _zombie,
        "behind": _behind,
        "split": _split,
        "asynchronous": _asynchronous,
    }
)
"""What befalls a pair, by name. Afterwards the primary takes commits, and `rejoin` makes the pair whole again. `behind` is for
a synchronous pair beside a load; `asynchronous` is for one that isn't synchronous, and loses what the standby had not. After
`split`, what the old primary acknowledges is lost."""
