"""Which of the hosts of a DSN is the primary, as far as this process knows: where its sessions may be, and where not.

A former primary that came back takes writes, too, and libpq takes the first host that does. So a process asks all hosts
every few seconds. It leaves a server that is on a lower timeline than another one of the same system that takes writes,
and does not come back to it, whatever the order of the hosts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from . import hosts
from .dsn import readable
from .hosts import Host, Standing
from .steps import Statement

log = logging.getLogger("outbox.database")

CHECK_EVERY = 10.0
"""Seconds between two looks at all hosts. A look takes a few seconds at most: a wrong server is left within 15."""

Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class Primary:
    """What a process knows of the hosts of one DSN. A later look adds to it: what was outdated once stays so.

    `avoid` has the hosts where no session may be, with the reason. `stand` is the host of the latest session. `left`
    counts how often that one had to be left.
    """

    def __init__(self) -> None:
        self.hosts: list[Host] = []
        self.avoid: dict[Host, str] = {}
        self.stand: Host | None = None
        self.left = 0
        self._system: str | None = None
        self._timeline = 0
        self._twins: frozenset[Host] = frozenset()

    def learn(self, standings: Sequence[Standing]) -> None:
        """Takes in what all hosts have answered."""
        self.hosts = [each.host for each in standings]
        answers = [each for each in standings if each.trouble is None]
        writing = [each for each in answers if each.takes_writes]
        self._choose_system(standings, writing)
        ours = [each for each in writing if self._is_ours(each)]
        self._timeline = max([self._timeline, *(each.timeline for each in ours)])
        answered = {each.host for each in answers}
        avoid = {host: why for host, why in self.avoid.items() if host not in answered}
        avoid |= {each.host: why for each in writing if (why := self._why_not(each))}
        new = avoid.keys() - self.avoid.keys()
        for host in new:
            log.error("%s: no session is opened there", avoid[host])
        self.avoid = avoid
        self._note_twins([each for each in ours if each.host not in avoid])
        self.left += self.stand in new

    def arrived(self, each: Standing) -> None:
        """Notes where a new session is. OperationalError if it may not be there."""
        if each.takes_writes:
            if self._is_ours(each):
                self._timeline = max(self._timeline, each.timeline)
            if why := self._why_not(each):
                self.avoid = {**self.avoid, each.host: why}  # other threads may be reading it
                raise psycopg.OperationalError(why)
            self.stand = each.host

    @property
    def knows_system(self) -> bool:
        """Whether the role of the DSN may see which system a server is of."""
        return bool(self._system)

    @property
    def is_open(self) -> bool:
        """Whether sessions may be on any host that takes them, as is so unless several take writes."""
        return not self.avoid and not self._twins

    def allowed(self, order: Sequence[tuple[str, str]]) -> list[Host]:
        """Returns the hosts where sessions may be, in the `order` of their names and ports.

        Where two are as good, the one where this process stands is first. OperationalError if there is none.
        """
        allowed = [host for host in self.hosts if host not in self.avoid]
        if not allowed:
            raise psycopg.OperationalError("; ".join(self.avoid.values()))
        places = {place: number for number, place in enumerate(order)}
        at_home = self.stand if self._twins else None
        return sorted(allowed, key=lambda host: (host != at_home, places.get((host.name, host.port), 0)))

    def _choose_system(self, standings: Sequence[Standing], writing: Sequence[Standing]) -> None:
        """Keeps to the system of the first primary that was seen, unless all hosts have become those of another one."""
        replaced = not any(each.trouble or self._is_ours(each) for each in standings)
        if writing and (self._system is None or replaced):
            at = next((each for each in writing if each.host == self.stand), writing[0])
            self._system, self._timeline = at.system, 0

    def _is_ours(self, each: Standing) -> bool:
        return not each.system or each.system == self._system  # a role that can't see the system trusts the DSN

    def _why_not(self, each: Standing) -> str | None:
        if not self._is_ours(each):
            return f"{each.host} is of another database system"
        if each.timeline < self._timeline:
            told = f"takes writes on timeline {each.timeline}, and the primary is on {self._timeline}"
            return f"{each.host} {told}: it is a former primary that came back"
        return None

    def _note_twins(self, best: Sequence[Standing]) -> None:
        several = len({each.server for each in best}) > 1
        twins = frozenset(each.host for each in best) if several else frozenset()
        if twins and twins != self._twins:
            told = "%s take writes, all on timeline %s: this process stays where it is. Stop the wrong one"
            log.error(told, " and ".join(str(each.host) for each in best), self._timeline)
        self._twins = twins


_known: dict[frozenset[Host], Primary] = {}
"""What this process knows, by the hosts of a DSN in any order. Of a single host, it knows nothing."""


async def look(dsn: str) -> Primary | None:
    """Asks all hosts of a DSN and returns what is known now; None, without asking, if there is only one."""
    if not readable(dsn):
        return None  # the attempt to connect says so; a part of a password must not be looked up as a host
    key = _key(dsn)
    if len(await hosts.resolved(dsn)) < 2:
        _known.pop(key, None)
        return None
    standings = await hosts.ask(dsn)
    known = _known.setdefault(key, Primary())
    known.learn(standings)
    return known


async def watch(dsns: Iterable[str], leave: Callable[[str], object]) -> None:
    """Looks at the hosts of DSNs for ever. Calls `leave` with the reason when sessions are where they must not be."""
    left = {dsn: known.left if (known := _known.get(_key(dsn))) else 0 for dsn in dsns}
    while True:
        await asyncio.sleep(CHECK_EVERY)
        for dsn, times in left.items():
            try:
                if (known := await look(dsn)) and known.left > times:
                    left[dsn] = known.left
                    leave("another host has become the primary")
            except Exception:
                log.exception("the hosts of the database can't be asked")


def narrowed(conninfo: str) -> str:
    """Returns a connection string that leads only where sessions may be. OperationalError if there is no such host."""
    known = _known.get(_key(conninfo))
    if known is None or known.is_open:
        return conninfo
    order = [(host.name, host.port) for host in hosts.listed(conninfo_to_dict(conninfo))]
    allowed = [host.params for host in known.allowed(order)]
    places = {key: ",".join(each.get(key, "") for each in allowed) for key in ("host", "hostaddr", "port")}
    given = {key: value for key, value in conninfo_to_dict(conninfo).items() if key not in places}
    given |= {key: value for key, value in places.items() if value.strip(",")}
    return make_conninfo("", **{**given, "load_balance_hosts": "disable"})


def arriving(conninfo: str, conn: Connection) -> Generator[Statement, Any, None]:
    """Asks in a new session where it is, if the DSN has several hosts. OperationalError if it may not be there."""
    if known := _known.get(_key(conninfo)):
        question = "host_standing" if known.knows_system else "host_standing_without_system"
        rows = yield hosts.SQL[question], {}
        host = Host(conn.info.host, conn.info.hostaddr or conn.info.host, str(conn.info.port))
        same = (each for each in known.hosts if each[1:] == host[1:])
        known.arrived(hosts.standing(next(same, host), rows[0]))


def _key(dsn: str) -> frozenset[Host]:
    return frozenset(hosts.listed(conninfo_to_dict(dsn)))
