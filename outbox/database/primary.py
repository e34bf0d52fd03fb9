"""Which of the hosts of a DSN is the primary, as far as this process knows: where its sessions may be, and where not.

A former primary that came back takes writes, too, and libpq takes the first host that does. So a process asks all hosts
every few seconds, and as soon as a server does not answer what can't be slow (connection_group.py). It leaves a server
that is on a lower timeline than another one of the same system that takes writes, and does not come back to it,
whatever the order of the hosts.

Of a DSN with a single host, what a new session finds is believed: the name may lead elsewhere by now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from . import hosts
from .dsn import params_of, readable
from .given import Dsn, current_async
from .hosts import Host, Standing
from .steps import Statement

log = logging.getLogger("outbox.database")

Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class Primary:
    """What a process knows of the hosts of one DSN. A later look adds to it: what was outdated once stays so.

    `avoid` has the hosts where no session may be, with the reason, as of their last answers. They are tried last, since
    a host may have become the primary meanwhile. `stand` is the host of the latest session.
    """

    def __init__(self) -> None:
        self.hosts: list[Host] = []
        self.avoid: dict[Host, str] = {}
        self.stand: Host | None = None
        self._system: str | None = None
        self._timeline = 0
        self._twins: frozenset[Host] = frozenset()

    def learn(self, standings: Sequence[Standing], *, complete: bool = True) -> None:
        """Takes in what the hosts have answered; if not `complete`, some may still answer."""
        if not complete and self._system is None:
            return  # which system is ours is not told by the one that answers first
        self.hosts = [each.host for each in standings]
        answers = [each for each in standings if each.trouble is None]
        writing = [each for each in answers if each.takes_writes]
        self._choose_system(standings, writing)
        ours = [each for each in writing if self._is_ours(each)]
        if self.is_single:
            self._timeline = max((each.timeline for each in ours), default=0)
            return
        self._timeline = max([self._timeline, *(each.timeline for each in ours)])
        answered = {each.host for each in answers}
        avoid = {host: why for host, why in self.avoid.items() if host not in answered}
        avoid |= {each.host: why for each in writing if (why := self._why_not(each))}
        for host in avoid.keys() - self.avoid.keys():
            log.error("%s: no session is opened there", avoid[host])
        self.avoid = avoid
        if complete:
            self._note_twins([each for each in ours if each.host not in avoid])

    def arrived(self, each: Standing) -> None:
        """Notes where a new session is. OperationalError if it may not be there."""
        if each.takes_writes and not self.is_single:
            if self._is_ours(each):
                self._timeline = max(self._timeline, each.timeline)
            avoid = {host: why for host, why in self.avoid.items() if host != each.host}
            if why := self._why_not(each):
                self.avoid = {**avoid, each.host: why}
                raise psycopg.OperationalError(why)
            self.avoid = avoid  # a new dict each time, as other threads may be reading the former one
        if each.takes_writes:
            self.stand = each.host

    def is_outdated(self, timeline: int) -> bool:
        """Whether a server on this timeline (0: not known) is one that was failed over from."""
        return 0 < timeline < self._timeline

    @property
    def is_single(self) -> bool:
        """Whether the DSN has one host, which may be a name that leads elsewhere later."""
        return len(self.hosts) < 2

    @property
    def knows_system(self) -> bool:
        """Whether the role of the DSN may see which system a server is of."""
        return bool(self._system)

    def ordered(self, order: Sequence[tuple[str, str]]) -> list[Host] | None:
        """Returns the hosts as they are to be tried; None if in the `order` of the DSN, which has names and ports.

        Where two are as good, the one where this process stands is first. Those to avoid are last.
        """
        if not (self.avoid or self._twins):
            return None
        places = {place: number for number, place in enumerate(order)}
        at_home = self.stand if self._twins else None
        judged = {host: number for number, host in enumerate(self.avoid, 1)}  # the latest last: others may have changed
        return sorted(
            self.hosts,
            key=lambda host: (judged.get(host, 0), host != at_home, places.get((host.name, host.port), 0)),
        )

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


async def look(dsn: Dsn) -> Primary | None:
    """Asks all hosts of a DSN and returns what is known now; None, without asking, if there is only one."""
    place = await current_async(dsn)
    if not readable(place):
        return None  # the attempt to connect says so; a part of a password must not be looked up as a host
    if len(await hosts.resolved(place)) < 2:
        _known.setdefault(_key(place), Primary())
        return None
    async for known in asked(place):  # noqa: B007
        pass
    return known


async def asked(dsn: Dsn) -> AsyncGenerator[Primary]:
    """Asks all hosts of a DSN. Yields what is known after each answer: a host that hangs takes seconds to give none."""
    place = await current_async(dsn)
    known = _known.setdefault(_key(place), Primary())
    known.hosts = await hosts.resolved(place)
    standings = {host: Standing(host, "no answer yet") for host in known.hosts}
    answers = asyncio.as_completed([hosts.ask_one(place, host) for host in standings])
    for count, answer in enumerate(answers, 1):
        each = await answer
        standings[each.host] = each
        known.learn(list(standings.values()), complete=count == len(standings))
        yield known


def narrowed(conninfo: str) -> str:
    """Returns a connection string that leads first where sessions may be."""
    known = _known.get(_key(conninfo))
    order = [(host.name, host.port) for host in hosts.listed(params_of(conninfo))]
    ordered = known.ordered(order) if known else None
    if ordered is None:
        return conninfo
    params = [host.params for host in ordered]
    places = {key: ",".join(each.get(key, "") for each in params) for key in ("host", "hostaddr", "port")}
    given = {key: value for key, value in params_of(conninfo).items() if key not in places}
    given |= {key: value for key, value in places.items() if value.strip(",")}
    return make_conninfo("", **{**given, "load_balance_hosts": "disable"})


def has_several(dsn: str) -> bool:
    """Whether this process has found that a DSN leads to several hosts, or that its name has several addresses."""
    known = _known.get(_key(dsn)) if readable(dsn) else None
    return known is not None and not known.is_single


def arriving(conninfo: str, conn: Connection) -> Generator[Statement, Any, int]:
    """Asks in a new session where it is. Returns its timeline, or 0 if it can't be told or this process does not watch.

    Raises OperationalError if it may not be there.
    """
    known = _known.get(_key(conninfo))
    if known is None:
        return 0
    question = "host_standing" if known.knows_system else "host_standing_without_system"
    try:
        rows = yield hosts.SQL[question], {}
    except (psycopg.NotSupportedError, psycopg.ProgrammingError):
        return 0  # some services have no log that a session could see
    host = Host(conn.info.host, conn.info.hostaddr or conn.info.host, str(conn.info.port))
    same = (each for each in known.hosts if each[1:] == host[1:])
    found = hosts.standing(next(same, host), rows[0])
    known.arrived(found)
    return found.timeline


def _key(dsn: str) -> frozenset[Host]:
    return frozenset(hosts.listed(params_of(dsn)))
