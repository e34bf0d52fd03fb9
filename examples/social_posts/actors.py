"""Who acts in the demo, next to the workers: a monitor, a reviewer, and the one who kills a worker."""

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

Say = Callable[[str], None]


class Actor(Protocol):
    """Does one small thing at each step, about `every` so many seconds."""

    every: float

    def step(self) -> None: ...


class Monitor:
    """Finds posts twice a second and submits them, so many that all have come after six seconds or so."""

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
            self.submitted += posts.submit_many(self.conn, batch)  # an id that comes again is no new post
        self.seen = due


class Reviewer:
    """Sarah answers the questions that wait for her, as `outbox approve` and `outbox reject` would."""

    every = 0.5

    def __init__(self, conn: Connection[Any], run: str) -> None:
        self.conn, self.run = conn, run
        self.verdicts = {"APPROVED": 0, "REJECTED": 0}

    def step(self) -> None:
        asked = look.approvals(self.conn, pipeline="posts", assignee="sarah")
        for entity, post in ((row["entity_id"], row["data"]) for row in asked):
            if not entity.startswith(self.run):
                continue
            if post["enrichment"]["sentiment"] < -0.9:
                status = reject(self.conn, posts, entity, by="sarah", reason="insults and threats stay out")
            else:
                status = approve(self.conn, posts, entity, by="sarah", reason="angry, but it has a point")
            self.verdicts[status] += 1


@dataclass
class Killer:
    """Kills one worker in the middle of its work, starts another, and watches what becomes of its jobs.

    `enough` tells how many jobs a worker must hold to be killed; 0 while it is too early for that.
    """

    conn: Connection[Any]
    processes: Processes
    workers: list[subprocess.Popen[str]]
    enough: Callable[[], int]
    say: Say
    every: float = 0.02
    killed_at: float | None = None
    held: dict[UUID, tuple[str, int]] = field(default_factory=dict)  # stage and attempt of each job it held
    again: dict[UUID, float] = field(default_factory=dict)  # seconds until each was taken up again

    def step(self) -> None:
        if self.killed_at is not None:
            self.watch(self.killed_at)
        elif enough := self.enough():
            self.strike(enough)

    def strike(self, enough: int) -> None:
        """Freeze a worker to see what it holds; if that is anything, it never wakes up again."""
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
        name = f"{socket.gethostname()}:{worker.pid}"  # as workers call themselves
        return {workflow: (stage, attempt) for workflow, stage, attempt in self.conn.execute(query, (name,))}

    def watch(self, killed_at: float) -> None:
        """A job was taken up again when it is at a later attempt, at another stage, or done."""
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
