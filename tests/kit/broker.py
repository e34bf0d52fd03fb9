"""Runs real RabbitMQ nodes for the tests, each in a folder of its own, on loopback and ports of its own.

A node never meets the machine's own broker. It has its own name, cookie, data, settings and epmd (Erlang's port mapper,
without which RabbitMQ doesn't start), and of the environment it sees only PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from kit.servers import DEADLINE, free_port, freeze, store, wait_for

DEBIAN = Path("/usr/lib/rabbitmq/bin")
LOOPBACK = "127.0.0.1"
# Virtual hosts made in one call: each costs milliseconds.
BATCH = 20


def programs() -> Path | None:
    """Returns the folder of RabbitMQ's own scripts; None if this machine doesn't have it."""
    # Debian's program on PATH is a wrapper that insists on the user rabbitmq and the machine's own settings.
    if (DEBIAN / "rabbitmq-server").exists():
        return DEBIAN
    found = shutil.which("rabbitmq-server")
    return Path(found).resolve().parent if found else None


def needed_libraries(folder: Path) -> list[Path]:
    """Returns the libraries in RabbitMQ's `plugins` that a node without plugins uses.

    Erlang looks for each module in one library after the other. With all 70 of them, a start takes twice as long.
    """
    libraries = {path.name.rsplit("-", 1)[0]: path for path in folder.iterdir() if (path / "ebin").is_dir()}
    if "rabbit" not in libraries:
        return list(folder.iterdir())  # a release that ships archives, which don't list what they use
    needed, names = set(), ["rabbit"]
    while names:
        name = names.pop()
        if name in libraries and name not in needed:
            needed.add(name)
            uses = re.search(
                r"\{applications,\s*\[(.*?)\]", (libraries[name] / "ebin" / f"{name}.app").read_text(), re.S
            )
            names += re.findall(r"\w+", uses[1]) if uses else []
    return [libraries[name] for name in needed]


class Broker:
    """A node that a test may stop, kill, freeze and start again. User `guest`; durable data stays until `remove`."""

    def __init__(self) -> None:
        found, epmd = programs(), shutil.which("epmd")
        if found is None or epmd is None:
            raise RuntimeError("RabbitMQ or its Erlang is not on this machine; say make test RABBITMQ=skip")
        self.bin, self._epmd_program = found, epmd
        self.folder = Path(tempfile.mkdtemp(prefix="obmq", dir=store()))
        self.port, self.dist_port, self.epmd_port = free_port(), free_port(), free_port()
        self.node = f"{self.folder.name.replace('_', '-')}@localhost"
        self._spare: list[str] = []
        self._vhosts = 0
        self._alarmed = False
        self._beam: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._has_epmd = True
        self.home = self.folder / "home"
        for name in ("data", "log", "conf.d", "home/plugins"):
            (self.folder / name).mkdir(parents=True)
        for library in needed_libraries((found / "rabbitmq-server").resolve().parents[1] / "plugins"):
            (self.home / "plugins" / library.name).symlink_to(library)
        # The scripts read this file after they have set their own home.
        (self.folder / "env").write_text(f"RABBITMQ_HOME={self.home}\n")
        (self.folder / "plugins").write_text("[].\n")
        self._configure()

    def _configure(self, *more: str, others: str = "") -> None:
        # No rabbitmq.conf: to translate one costs a second of the start.
        settings = [f'{{tcp_listeners, [{{"{LOOPBACK}", {self.port}}}]}}', "{disk_free_limit, 1000}", *more]
        (self.folder / "advanced.config").write_text(f"[{{rabbit, [{', '.join(settings)}]}}{others}].\n")

    def cluster_with(self, nodes: Sequence[Broker]) -> None:
        """Make the node one of a cluster, before its first start. The first of `nodes` must have started before it."""
        self.epmd_port, self._has_epmd = nodes[0].epmd_port, self is nodes[0]
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(nodes[0].folder.name)
        cookie.chmod(0o400)
        names = ", ".join(f"'{node.node}'" for node in nodes)
        no_delay = "{cluster_formation, [{randomized_startup_delay_range, {0, 0}}]}"
        # A node that is frozen counts as gone after so many seconds. Until then the others wait for it, even to bind.
        ticks = ", {kernel, [{net_ticktime, 4}]}"
        self._configure(f"{{cluster_nodes, {{[{names}], disc}}}}", no_delay, others=ticks)

    def start(self) -> Broker:
        """Start the node; return when it answers AMQP."""
        self.launch()
        wait_for(self._is_up, what="RabbitMQ answers")
        return self

    def launch(self) -> None:
        """Start the node; `start` also waits for it."""
        if self._beam is not None:
            return
        if self._epmd is None and self._has_epmd:
            self._epmd = self._start(self._epmd_program, "-port", str(self.epmd_port), "-address", LOOPBACK)
            # If RabbitMQ found no epmd, it would start one that outlives it.
            wait_for(self._has_mapper, what="epmd listens")
        self._beam = self._start(str(self.bin / "rabbitmq-server"))

    def stop(self) -> None:
        """Ends the node in an orderly way."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the node with SIGKILL. What it had not made durable is lost, except for existing queues and bindings.

        RabbitMQ writes those to disk up to seconds after it has reported them as created: Mnesia's log, and the tables in
        which a quorum queue finds its messages.
        """
        self.ask("mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()].")
        self.crash()

    def crash(self) -> None:
        """End the node with SIGKILL. Another node of its cluster has what it had not written down."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Freezes the node; its connections stay open and silent."""
        freeze(self.pid)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def alarm(self, on: bool) -> None:
        """Raises or clears the memory alarm. While it is on, publishers are blocked."""
        self.ask(f"vm_memory_monitor:set_vm_memory_high_watermark({0.0 if on else 0.6}).")
        self._alarmed = on

    def recover(self) -> None:
        """Undoes what a test did: the node runs, isn't frozen and has no alarm."""
        if self._beam is None:
            self.start()
        self.thaw()
        if self._alarmed:
            self.alarm(False)

    def ctl(self, *arguments: str) -> str:
        """Returns the output of rabbitmqctl with these arguments."""
        done = subprocess.run(
            [str(self.bin / "rabbitmqctl"), "--quiet", *arguments],
            env=self._environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def ask(self, expression: str) -> str:
        """Returns what an Erlang expression gives in the node. For that, rabbitmqctl takes half a second of CPU."""
        program = shutil.which("erl_call")
        if program is None:  # a package of Erlang without its interface for C
            return self.ctl("eval", expression).strip()
        cookie = (self.folder / ".erlang.cookie").read_text()
        done = subprocess.run(
            [program, "-n", self.node, "-c", cookie, "-e"],
            input=f"{expression}\n",
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if done.returncode or not done.stdout.startswith("{ok, "):
            raise RuntimeError(f"RabbitMQ was asked {expression} and said {done.stdout}{done.stderr}")
        return done.stdout.removeprefix("{ok, ").removesuffix("}")

    @property
    def pid(self) -> int:
        if self._beam is None:
            raise RuntimeError("the broker is not running")
        return self._beam.pid

    @property
    def url(self) -> str:
        return self.url_of("%2F")

    def url_of(self, vhost: str) -> str:
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}/{vhost}"

    def new_url(self) -> str:
        """Returns the URL of a virtual host that no other test uses."""
        if not self._spare:
            self._spare = [f"test{self._vhosts + number}" for number in range(BATCH)]
            self._vhosts += BATCH
            rights = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
            self.define(
                vhosts=[{"name": name} for name in self._spare],
                permissions=[{"vhost": name, **rights} for name in self._spare],
            )
        return self.url_of(self._spare.pop(0))

    def define(self, **definitions: list[dict[str, object]]) -> None:
        """Adds virtual hosts, users and rights in one call, as RabbitMQ exports them."""
        file = self.folder / "definitions.json"
        file.write_text(json.dumps(definitions))
        self.ask(f'{{ok, Text}} = file:read_file("{file}"), ok = rabbit_definitions:import_raw(Text).')

    def remove(self) -> None:
        if self._beam is not None:
            self._end(signal.SIGKILL)
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(DEADLINE)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C is meant for the tests, which then end the node.
                start_new_session=True,
            )

    def _end(self, number: signal.Signals) -> None:
        beam, self._beam = self._beam, None
        if beam is None:
            raise RuntimeError("the broker is not running")
        beam.send_signal(number)
        # A frozen node acts on the signal only when it goes on.
        beam.send_signal(signal.SIGCONT)
        beam.wait(DEADLINE)
        self._alarmed = False

    def _has_mapper(self) -> bool:
        if self._epmd is not None and self._epmd.poll() is not None:
            self._epmd = None
            raise RuntimeError(f"epmd did not start on port {self.epmd_port}: {self._output()}")
        return self._answers(self.epmd_port, b"")

    def _is_up(self) -> bool:
        if self._beam is not None and self._beam.poll() is not None:
            self._beam = None
            raise RuntimeError(f"RabbitMQ did not start: {self._output()}")
        return self._answers(self.port, b"AMQP\x00\x00\x09\x01")

    def _output(self) -> str:
        # Its first lines name the cause; a page of Erlang's terms follows.
        return (self.folder / "output").read_text()[-20_000:]

    @staticmethod
    def _answers(port: int, greeting: bytes) -> bool:
        try:
            with socket.create_connection((LOOPBACK, port), 5) as line:
                line.sendall(greeting)
                return not greeting or bool(line.recv(1))
        except OSError:
            return False

    def _environment(self) -> dict[str, str]:
        at = str(self.folder)
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "HOME": at,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_CONF_ENV_FILE": f"{at}/env",
            "RABBITMQ_CONFIG_FILE": f"{at}/rabbitmq",
            "RABBITMQ_CONFIG_FILES": f"{at}/conf.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{at}/advanced.config",
            "RABBITMQ_PLUGINS_DIR": f"{self.home}/plugins",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{at}/plugins",
            "RABBITMQ_MNESIA_BASE": f"{at}/data",
            "RABBITMQ_LOG_BASE": f"{at}/log",
            # With these two, the script becomes the node, not a parent that would survive the node's SIGKILL.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-noinput {loopback}",
            "RABBITMQ_CTL_ERL_ARGS": loopback,
        }


@contextlib.contextmanager
def channel(url: str) -> Iterator[BlockingChannel]:
    """Opens a channel on a connection of its own."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


def queue_depth(url: str, queue: str) -> int:
    """Returns how many messages are ready in a queue."""
    with channel(url) as opened:
        return int(opened.queue_declare(queue, passive=True).method.message_count)


def main() -> int:
    """Runs a command with OUTBOX_AMQP_URL set to a node that exists as long as the command runs."""
    broker = Broker()
    try:
        broker.start()
        return subprocess.run(sys.argv[1:], env={**os.environ, "OUTBOX_AMQP_URL": broker.url}, check=False).returncode
    except KeyboardInterrupt:
        return 130
    finally:
        broker.remove()


if __name__ == "__main__":
    sys.exit(main())
