"""Asks each host of a DSN where it stands: whether it takes writes, and on which timeline.

A promotion begins a new timeline. Of two servers of one system that take writes, the one on the lower timeline is a
former primary that came back: what it takes is lost. Patroni and repmgr tell it in the same way.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from ..texts import printable
from . import statements
from .dsn import engine_conninfo, params_of
from .given import Dsn, current_async
from .sockets import shut

SQL = statements.load("hosts")

ANSWER_WITHIN = 2.0
"""Seconds in which a host must take a connection, and again in which it must answer: a hung one does neither. libpq
waits no shorter for a connection."""

DEFAULT_PORT = "5432"


class Host(NamedTuple):
    """One address of one host of a DSN. Its `name` is as the DSN has it."""

    name: str
    address: str
    port: str

    def __str__(self) -> str:
        name = self.name or self.address or "localhost"
        told = name if self.address in ("", name) else f"{name} ({self.address})"
        return printable(f"{told}, port {self.port}")

    @property
    def params(self) -> dict[str, str]:
        """The parameters of a DSN that lead here."""
        given = {"host": self.name, "hostaddr": self.address if _is_ip(self.address) else "", "port": self.port}
        return {key: value for key, value in given.items() if value}


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a host: what it has answered, or in `trouble` why it has not.

    `refuses`: its server answers, but not to this DSN: the password, the database or the user is wrong. `starting`: it
    takes nothing yet. `unknown`: there is no host of this name. `server` is the same as long as the server runs.
    """

    host: Host
    trouble: str | None = None
    refuses: bool = False
    starting: bool = False
    unknown: bool = False
    system: str = ""
    server: str = ""
    timeline: int = 0
    read_only: bool = True

    @property
    def in_recovery(self) -> bool:
        return self.trouble is None and self.timeline == 0

    @property
    def takes_writes(self) -> bool:
        return self.trouble is None and self.timeline > 0 and not self.read_only


def listed(conninfo: Mapping[str, Any]) -> list[Host]:
    """Returns the hosts of a DSN, given as its parameters, in their order, with names that are not resolved yet."""
    names, addresses, ports = (
        _list(conninfo, key, env) for key, env in (("host", "PGHOST"), ("hostaddr", "PGHOSTADDR"), ("port", "PGPORT"))
    )
    count = max(len(names), len(addresses), 1)
    names, addresses = names or [""] * count, addresses or [""] * count
    ports = ports * count if len(ports) == 1 else ports or [DEFAULT_PORT] * count
    if not len(names) == len(addresses) == len(ports):
        return []  # libpq says what is wrong with it
    return [
        Host(name, address or (name if name.startswith("/") or _is_ip(name) else ""), port or DEFAULT_PORT)
        for name, address, port in zip(names, addresses, ports, strict=True)
    ]


async def resolved(dsn: str) -> list[Host]:
    """Returns the hosts of a DSN, each with each of its addresses: libpq tries all of them."""
    return [each for host in listed(params_of(dsn)) for each in await _addresses(host)]


async def ask(dsn: Dsn) -> list[Standing]:
    """Asks all hosts of a DSN at once, each on a connection of its own. Takes a few seconds at most."""
    place = await current_async(dsn)
    return list(await asyncio.gather(*(ask_one(place, host) for host in await resolved(place))))


def standing(host: Host, row: tuple[Any, ...]) -> Standing:
    """Returns what a row of `host_standing` says of a host."""
    system, server, timeline, read_only = row
    return Standing(host, system=system, server=server, timeline=int(timeline, 16), read_only=read_only)


async def ask_one(dsn: str, host: Host) -> Standing:
    """Asks one of them. Never raises for what a server does or says."""
    given = {key: value for key, value in params_of(engine_conninfo(dsn, "hosts")).items()
             if key not in ("host", "hostaddr", "port")}  # fmt: skip
    given |= {**host.params, "connect_timeout": f"{ANSWER_WITHIN:.0f}", "target_session_attrs": "any"}
    conninfo = make_conninfo("", **given)
    for refused_before in (False, True):
        try:
            conn = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)
            break
        except psycopg.errors.ConnectionTimeout:
            return Standing(host, f"no answer within {ANSWER_WITHIN:g} s")
        except psycopg.Error as error:
            found = await _no_session(host, conninfo, error)
            # It may have been starting, and be there by the time that it was asked whether it is.
            if refused_before or not found.refuses:
                return found
    # Not by a timeout of asyncio: psycopg would then ask the same host to cancel, and wait for it.
    timer = asyncio.get_running_loop().call_later(ANSWER_WITHIN, _shut, conn)
    try:
        try:
            rows = await (await conn.execute(SQL["host_standing"])).fetchall()
        except psycopg.errors.InsufficientPrivilege:
            rows = await (await conn.execute(SQL["host_standing_without_system"])).fetchall()
        return standing(host, rows[0])
    except psycopg.Error as error:
        return Standing(host, _told(error))
    finally:
        timer.cancel()
        await conn.close()


async def _no_session(host: Host, conninfo: str, error: psycopg.Error) -> Standing:
    if host.address == "" and host.name:
        return Standing(host, _told(error), unknown=await _is_unknown(host.name))
    answer = Ping(await asyncio.to_thread(PGconn.ping, conninfo.encode()))
    return Standing(host, _told(error), refuses=answer == Ping.OK, starting=answer == Ping.REJECT)


def _shut(conn: psycopg.AsyncConnection[Any]) -> None:
    if not conn.closed:
        shut(conn)


async def _addresses(host: Host) -> list[Host]:
    if host.address or not host.name:
        return [host]
    try:
        found = list(dict.fromkeys(await _look_up(host.name)))
    except OSError:
        return [host]  # the attempt to connect says why
    if all(ip_address(address).is_loopback for address in found):
        found = found[:1]  # the addresses of one machine
    return [host._replace(address=address) for address in found]


async def _is_unknown(name: str) -> bool:
    """Whether there is no such name. A name server that is away is no such answer."""
    try:
        await _look_up(name)
    except socket.gaierror as error:
        return error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
    except OSError:
        pass
    return False


async def _look_up(name: str) -> Iterator[str]:
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return (str(item[4][0]) for item in found)


def _list(given: Mapping[str, Any], key: str, env: str) -> list[str]:
    value = str(given.get(key) or os.environ.get(env, ""))
    return value.split(",") if value else []


def _is_ip(address: str) -> bool:
    try:
        return bool(ip_address(address))
    except ValueError:
        return False


def _told(error: psycopg.Error) -> str:
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])
