"""Processes that are started while there is no primary: they wait for it, and tell apart what no waiting will mend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import make_posts
from kit.replication import Pair
from kit.servers import DEADLINE, PostgresServer, free_port
from outbox import SchemaError, Worker
from outbox.messages.consumer import Consumer
from outbox.messages.handoff import Handoff
from outbox.messages.relay import Relay

posts = make_posts()


class Service(Protocol):
    async def run(self) -> None: ...
    def stop(self) -> None: ...


def worker(dsn: str, **options: Any) -> Worker:
    return Worker(posts, dsn, **options)


def relay(dsn: str, **options: Any) -> Relay:
    return Relay(dsn, Handoff(dsn, "posts"), **options)


def consumer(dsn: str) -> Consumer:
    return Consumer("queue", print, dsn=dsn, amqp_url="amqp://127.0.0.1/")


SERVICES = (worker, relay, consumer)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(synchronous=False) as pair:
        yield pair


def run_until(service: Service, told: Callable[[], bool], then: Callable[[], object]) -> None:
    """Runs a service; when it has `told` something, does what is to happen `then`, in a thread."""

    async def run() -> None:
        running = asyncio.create_task(service.run())
        while not told() and not running.done():
            await asyncio.sleep(0.02)
        if not running.done():
            await asyncio.to_thread(then)
        await asyncio.wait_for(running, DEADLINE)

    asyncio.run(run())


def waits(caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    return lambda: "waiting for the database to take writes" in caplog.text


@pytest.mark.parametrize("make", SERVICES)
@pytest.mark.parametrize("hosts", [1, 2])
def test_a_process_waits_for_a_server_that_is_down_until_it_is_told_to_stop(
    make: Callable[[str], Service], hosts: int, caplog: pytest.LogCaptureFixture
) -> None:
    ports = ",".join(str(free_port()) for _ in range(hosts))
    service = make(f"host={','.join(['127.0.0.1'] * hosts)} port={ports} user=postgres")
    run_until(service, waits(caplog), service.stop)


@pytest.mark.parametrize("make", SERVICES)
def test_a_process_goes_on_when_the_server_has_started(
    make: Callable[[str], Service], pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.primary.stop("fast")
    with pytest.raises(SchemaError):  # it has come as far as to the schema, which isn't there
        run_until(make(pair.primary.dsn()), waits(caplog), pair.primary.start)


@pytest.mark.parametrize("make", SERVICES)
@pytest.mark.parametrize("where", ["the standby", "both hosts"])
def test_a_process_goes_on_when_a_standby_is_promoted(
    make: Callable[[str], Service], where: str, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.primary.stop("fast")
    with pytest.raises(SchemaError):
        run_until(make(pair.standby.dsn() if where == "the standby" else pair.hosts()), waits(caplog), pair.promote)
    pair._follow()


WRONG = {
    "database": "host=127.0.0.1 port={port} user=postgres dbname=nope",
    "user": "host=127.0.0.1 port={port} user=nope dbname=postgres",
    "database on one host, the other one is down": "host=127.0.0.1,127.0.0.1 port={port},{free} user=postgres dbname=nope",
    "host name": "host=no-such-host.invalid user=postgres",
}


@pytest.mark.parametrize("dsn", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("make", SERVICES)
def test_what_is_wrong_in_the_dsn_is_told_at_once(
    make: Callable[[str], Service], dsn: str, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    service = make(dsn.format(port=pair.primary.port, free=free_port()))
    with pytest.raises(psycopg.OperationalError, match=r"nope|no-such-host|nor-this"):
        run_until(service, waits(caplog), service.stop)
    assert not waits(caplog)()


def test_of_a_name_that_nobody_knows_the_other_host_decides(caplog: pytest.LogCaptureFixture) -> None:
    service = worker(f"host=no-such-host.invalid,127.0.0.1 port={free_port()} user=postgres")
    run_until(service, waits(caplog), service.stop)


@pytest.mark.parametrize("make", [worker, relay])
def test_a_drain_does_not_wait_for_a_server_that_is_down(make: Callable[..., Service]) -> None:
    with pytest.raises(psycopg.OperationalError, match="Connection refused"):
        asyncio.run(make(f"host=127.0.0.1 port={free_port()} user=postgres", drain=True).run())


@pytest.mark.parametrize("command", ["worker --app apps.cli:posts", "relay --to postgresql://there/ --pipeline posts"])
def test_a_command_says_in_one_line_what_is_wrong_in_the_dsn(command: str, server: PostgresServer) -> None:
    outbox = Outbox(f"postgresql://nope:secret@{server.host}:{server.port}/nope")
    line = outbox.fails(*command.split())
    assert "can't connect to" in line
    assert 'role "nope" does not exist' in line
    assert "secret" not in line
