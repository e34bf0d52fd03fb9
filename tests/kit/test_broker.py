"""Tests that the tests' own RabbitMQ does what is asked of it, and keeps to itself."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import psutil
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from kit.broker import Broker, channel, queue_depth
from kit.servers import DEADLINE
from tools import packages

PERSISTENT = pika.BasicProperties(delivery_mode=2)
MACHINES_OWN = {4369, 5672, 15672, 25672}


@contextlib.contextmanager
def letters(url: str) -> Iterator[BlockingChannel]:
    """Yields a channel that waits for confirms, with the durable queue `letters`."""
    with channel(url) as opened:
        opened.confirm_delivery()
        opened.queue_declare("letters", durable=True)
        yield opened


def publish(opened: BlockingChannel) -> None:
    opened.basic_publish("", "letters", b"dear reader", PERSISTENT, mandatory=True)


def publish_elsewhere(opened: BlockingChannel) -> tuple[threading.Thread, threading.Event]:
    """Publishes in a thread; the event is set once the message is confirmed."""
    confirmed = threading.Event()
    thread = threading.Thread(target=lambda: (publish(opened), confirmed.set()))
    thread.start()
    return thread, confirmed


def family(broker: Broker) -> list[psutil.Process]:
    """Returns the node, its epmd and their children."""
    node = psutil.Process(broker.pid)
    epmd = [child for child in psutil.Process().children() if str(broker.epmd_port) in child.cmdline()]
    assert epmd
    return [node, *node.children(recursive=True), *epmd]


def test_confirmed_persistent_message_survives_kill_and_start(broker: Broker, amqp: str) -> None:
    with letters(amqp) as opened:
        publish(opened)
        broker.kill()
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            opened.connection.process_data_events(DEADLINE)
    broker.start()
    assert queue_depth(amqp, "letters") == 1


def test_message_survives_an_orderly_stop(broker: Broker, amqp: str) -> None:
    with letters(amqp) as opened:
        publish(opened)
    broker.stop()
    broker.recover()
    assert queue_depth(amqp, "letters") == 1


def test_frozen_broker_makes_a_publisher_wait_and_thawed_lets_it_go_on(broker: Broker, amqp: str) -> None:
    with letters(amqp) as opened:
        broker.freeze()
        thread, confirmed = publish_elsewhere(opened)
        assert not confirmed.wait(1)
        broker.thaw()
        assert confirmed.wait(DEADLINE)
        thread.join()


def test_alarm_blocks_a_publisher_and_its_end_lets_it_go_on(broker: Broker, amqp: str) -> None:
    told: list[str] = []
    with letters(amqp) as opened:
        opened.connection.add_on_connection_blocked_callback(lambda *_: told.append("blocked"))
        opened.connection.add_on_connection_unblocked_callback(lambda *_: told.append("unblocked"))
        broker.alarm(True)
        thread, confirmed = publish_elsewhere(opened)
        assert not confirmed.wait(1)
        broker.alarm(False)
        assert confirmed.wait(DEADLINE)
        thread.join()
        opened.connection.process_data_events(0)
    assert told == ["blocked", "unblocked"]


def test_broker_that_a_test_left_frozen_and_alarmed_recovers(broker: Broker, amqp: str) -> None:
    broker.alarm(True)
    broker.freeze()
    broker.recover()
    with letters(amqp) as opened:
        publish(opened)


def test_it_listens_on_loopback_only_and_not_on_the_machines_own_ports(broker: Broker) -> None:
    lines = [line for process in family(broker) for line in process.net_connections() if line.status == "LISTEN"]
    assert {line.laddr.port for line in lines} == {broker.port, broker.dist_port, broker.epmd_port}
    assert {line.laddr.ip for line in lines} <= {"127.0.0.1", "::1"}
    assert not {line.laddr.port for line in lines} & MACHINES_OWN


def test_it_talks_to_no_other_epmd_than_its_own(broker: Broker) -> None:
    peers = {line.raddr.port for process in family(broker) for line in process.net_connections() if line.raddr}
    assert broker.epmd_port in peers
    assert not peers & MACHINES_OWN


def test_two_brokers_do_not_disturb_each_other_and_a_removed_one_leaves_nothing(
    broker: Broker, make_broker: Callable[[], Broker]
) -> None:
    other = make_broker()
    with letters(broker.url), letters(other.url) as opened:
        publish(opened)
        assert (queue_depth(broker.url, "letters"), queue_depth(other.url, "letters")) == (0, 1)
    assert other.node in other.ask("node().")
    processes = family(other)
    other.freeze()
    other.remove()
    assert psutil.wait_procs(processes, DEADLINE)[1] == []
    assert not other.folder.exists()
    assert broker.node in broker.ask("node().")


def test_each_test_has_a_virtual_host_of_its_own(broker: Broker, amqp: str) -> None:
    with letters(amqp), pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        queue_depth(broker.new_url(), "letters")


def test_what_the_node_refuses_is_an_error(broker: Broker) -> None:
    with pytest.raises(RuntimeError, match=r"badmatch.*refused"):
        broker.ask("ok = refused.")


def test_no_package_may_start_a_service_during_an_installation(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with packages.no_services(policy):
        assert subprocess.run([policy], check=False).returncode == 101
    assert not policy.exists()


def test_policy_that_the_machine_has_is_left_alone(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("the machine's")
    with packages.no_services(policy):
        assert policy.read_text() == "the machine's"
    assert policy.read_text() == "the machine's"


def test_without_rabbitmq_and_apt_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.broker.DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"need rabbitmq-server: install it .* make test RABBITMQ=skip"):
        packages.main(["rabbitmq-server"])
