"""Ships the demo's messages: runs a relay to RabbitMQ, and a consumer that is killed at the worst time."""

import re
import signal
import subprocess
import time
from typing import Any

from psycopg import Connection

from .actors import Say
from .books import Check, check_books
from .consumer import EXCHANGE
from .processes import DemoError, Processes
from .report import Rows

RELAY = "demo"
START = 30.0  # seconds in which the consumer must get its queue, and the relay its name

ENRICHED = """
    SELECT count(*) FROM outbox.workflow_states AS w
    JOIN outbox.state_changes AS s ON s.workflow_id = w.id AND s.to_status = 'ENRICHED'
    WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %s)
"""
EFFECTS = "SELECT count(*) FROM demo_crm.enriched WHERE starts_with(entity_id, %s)"
MESSAGES = """
    SELECT m.message_id::text FROM outbox.workflow_states AS w JOIN outbox.messages AS m ON m.workflow_id = w.id
    WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %s)
"""


class Shipping:
    """Starts a relay and a consumer, and another consumer when the first one has died. Counts what arrives."""

    every = 0.1

    def __init__(self, conn: Connection[Any], processes: Processes, run: str, total: int, say: Say) -> None:
        self.conn, self.processes, self.run, self.say = conn, processes, run, say
        self.killed = False
        # The queue must exist before the first message, because a message that no queue takes would be parked.
        self.consumers = [self.start_consumer({"OUTBOX_KILL_AT": f"K13:{max(1, total // 4)}"})]
        self.wait_for(self.consumers[0], "takes from queue")
        self.relay = processes.start("-m", "outbox", "relay", "--name", RELAY, "--exchange", EXCHANGE, "--from-now")
        self.wait_for(self.relay, "relaying")
        self.say("the relay sends posts.enriched to RabbitMQ")

    def wait_for(self, process: subprocess.Popen[str], words: str) -> None:
        until = time.monotonic() + START
        while words not in self.processes.words(process):
            if time.monotonic() > until or process.poll() is not None:
                raise DemoError(f"RabbitMQ can't be used: {self.processes.last_words(process)}")
            time.sleep(0.05)

    def start_consumer(self, environment: dict[str, str]) -> subprocess.Popen[str]:
        return self.processes.start("-m", "outbox.demo.consumer", environment=environment)

    def step(self) -> None:
        """Watches relay and consumer. The consumer is meant to die once; any other death is an error."""
        if self.relay.poll() is not None:
            raise DemoError(f"the relay has ended: {self.processes.last_words(self.relay)}")
        if self.consumers[-1].poll() is None:
            return
        if self.killed or self.consumers[-1].returncode != -signal.SIGKILL:
            raise DemoError(f"the consumer has ended: {self.processes.last_words(self.consumers[-1])}")
        self.killed = True
        self.consumers.append(self.start_consumer({}))
        self.say("consumer killed (SIGKILL) between its commit and its acknowledgement; another takes its place")

    @property
    def done(self) -> bool:
        """Tells whether every message has had its effect."""
        return self.count(EFFECTS) >= self.count(ENRICHED)

    def stop(self) -> list[int]:
        """Ends both and returns their exit codes. Forgets the relay, because the log would be kept for it."""
        codes = self.processes.stop([self.relay, self.consumers[-1]])
        self.processes.run("relay", "--forget", RELAY)
        return codes

    def rows(self) -> Rows:
        effects, again = self.count(EFFECTS), self.duplicates()
        return [
            ("messages", str(self.count(ENRICHED))),
            ("deliveries handled", str(effects + again)),
            ("of these, duplicates", str(again)),
            ("effects", str(effects)),
        ]

    def checks(self) -> list[Check]:
        again = self.duplicates()
        return [
            *check_books(self.conn, self.run, 0, "shipping.sql"),
            Check(
                "the consumer was killed, and the next one recognized what had been handled",
                [] if self.killed and again else [f"the kill: {self.killed}, {again} duplicates"],
            ),
        ]

    def duplicates(self) -> int:
        """Returns how many deliveries of this run's messages the consumers reported as duplicates."""
        mine = {row[0] for row in self.conn.execute(MESSAGES, (self.run,))}
        said = "".join(self.processes.words(consumer) for consumer in self.consumers)
        return sum(found in mine for found in re.findall(r"message (\S+) was handled before", said))

    def count(self, query: str) -> int:
        return int(self.conn.execute(query.encode(), (self.run,)).fetchall()[0][0])
