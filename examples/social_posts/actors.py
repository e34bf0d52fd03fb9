"""Defines the demo's actors besides the workers: a monitor, a reviewer, and a killer of one worker."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol
from uuid import UUID

from psycopg import Connection

from outbox import approve, reject
from outbox.operations import look

from .pipeline import posts
from .processes import Processes
from .sources import Source

REVIEWER = "sarah"  # to whom the pipeline assigns its questions
Say = Callable[[str], None]


class Actor(Protocol):
    """Does one small thing in each step. A step comes about every `every` seconds."""

    every: float

    def step(self) -> None: ...


class Monitor:
    """Finds posts twice a second and submits them. After about six seconds it has submitted all."""

    every = 0.5

    def __init__(self, conn: Connection[Any], run: str, source: Source, total: int) -> None:
        self.conn, self.run, self.total = conn, run, total
        self.posts = iter(source)
        self.pace = max(20.0, total / 6)
        self.began = time.monotonic()
        self.seen = 0
        self.submitted = 0

    @property
    def done(self) -> bool:
        return self.seen == self.total

    def step(self) -> None:
        due = min(self.total, int((time.monotonic() - self.began) * self.pace) + 1)
        batch = [(f"{self.run}{entity}", post) for entity, post in islice(self.posts, due - self.seen)]
        with self.conn.transaction():
            self.submitted += posts.submit_many(self.conn, batch)  # an id that exists is not a new post
        self.seen = due


class Reviewer:
    """Answers the questions for Sarah, as `outbox approve` and `outbox reject` would.

    First it leaves them for `patience` seconds to the person who is Sarah on the page.
    """

    every = 0.5

    def __init__(self, conn: Connection[Any], run: str, patience: float = 0.0) -> None:
        self.conn, self.run = conn, run
        self.begins = time.monotonic() + patience

    @property
    def waits(self) -> bool:
        """Whether the questions are still left to a person."""
        return time.monotonic() < self.begins

    def step(self) -> None:
        if self.waits:
            return
        asked = look.approvals(self.conn, pipeline="posts", assignee=REVIEWER)
        for entity, post in ((row["entity_id"], row["data"]) for row in asked):
            if not entity.startswith(self.run):
                continue
            if post["enrichment"]["sentiment"] < -0.9:
                reject(self.conn, posts, entity, by=REVIEWER, reason="insults and threats stay out")
            else:
                approve(self.conn, posts, entity, by=REVIEWER, reason="angry, but it has a point")


@dataclass
class Killer:
    """Kills one worker while it works, starts another, and watches what happens to the killed worker's jobs.

    `enough` returns how many jobs a worker must hold to be killed, or 0 while it is too early to kill one.
    """

    conn: Connection[Any]
    processes: Processes
    workers: list[subprocess.Popen[str]]
    enough: Callable[[], int]
    say: Say
    every: float = 0.02
    killed_at: float | None = None
    held: dict[UUID, tuple[str, int]] = field(default_factory=dict)  # stage and attempt of each job it held
    again: dict[UUID, float] = field(default_factory=dict)  # seconds from the kill until each ran again

    def step(self) -> None:
        if self.killed_at is not None:
            self.watch(self.killed_at)
        elif enough := self.enough():
            self.strike(enough)

    def strike(self, enough: int) -> None:
        """Freezes a worker to see what it holds, and kills it if it holds any job."""
        for number, worker in enumerate(self.workers, start=1):
            if len(self.jobs_of(worker)) < enough:
                continue
            worker.send_signal(signal.SIGSTOP)
            self.held = self.jobs_of(worker)
            if not self.held:
                worker.send_signal(signal.SIGCONT)
                continue
            worker.kill()
            self.killed_at = time.monotonic()
            self.workers[number - 1] = self.processes.start_worker()
            self.say(f"worker {number} killed (SIGKILL) with {jobs(len(self.held))}; another takes its place")
            return

    def jobs_of(self, worker: subprocess.Popen[str]) -> dict[UUID, tuple[str, int]]:
        query = (
            "SELECT j.workflow_id, j.stage, j.attempt FROM outbox.jobs AS j"
            " JOIN outbox.workers AS w ON w.id = j.owner WHERE w.name = %s"
        )
        name = f"{socket.gethostname()}:{worker.pid}"  # the name that a worker gives itself
        return {workflow: (stage, attempt) for workflow, stage, attempt in self.conn.execute(query, (name,))}

    def watch(self, killed_at: float) -> None:
        """Notes which jobs ran again: those at a later attempt or another stage, and those that are done."""
        waiting = [workflow for workflow in self.held if workflow not in self.again]
        if not waiting:
            return
        query = "SELECT workflow_id, stage, attempt FROM outbox.jobs WHERE workflow_id = ANY (%s)"
        now = {workflow: (stage, attempt) for workflow, stage, attempt in self.conn.execute(query, (waiting,))}
        after = time.monotonic() - killed_at
        self.again |= {workflow: after for workflow in waiting if now.get(workflow) != self.held[workflow]}
        if len(self.again) == len(self.held):
            self.say(f"the killed worker's {jobs(len(self.held))} ran again within {after:.1f} s")


def jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"
