"""Directs the demo: starts the world and the workers, lets things go wrong, and checks the books at the end."""

import time
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from uuid import uuid4

import httpx
from psycopg import Connection, Error, connect
from psycopg.errors import InsufficientPrivilege
from rich.console import Console

from outbox.database.dsn import cannot_connect

from . import report
from .actors import Actor, Killer, Monitor, Reviewer
from .books import Check, check_books
from .pipeline import posts as pipeline
from .processes import APP, DemoError, Processes
from .screen import Screen
from .shipping import Shipping
from .sources import Source, SourceError

PATIENCE = 60.0  # seconds for which the reviews are left to the person who looks at the page
STALL = 30.0  # seconds without any change of a status, after which the demo gives up
# Queries for what the demo must not disturb or be disturbed by, and what it says if one finds something.
OBJECTIONS = {
    """
    SELECT entity_id FROM outbox.workflow_states
    WHERE pipeline = 'posts' AND NOT starts_with(entity_id, 'demo-') LIMIT 1
    """: "this database has posts that the demo did not submit",
    """
    SELECT 'process ' || pid FROM pg_stat_activity
    WHERE application_name = 'outbox demo' AND datname = current_database() AND pid <> pg_backend_pid()
    """: "another demo is running in this database",
    # A worker sends six heartbeats in a lease. One that has missed two of them is dead.
    """
    SELECT name FROM outbox.workers WHERE 'posts.act' = ANY (stages) AND beat_at > now() - lease / 3 LIMIT 1
    """: "a worker outside the demo would claim its jobs",
}
PROGRESS = """
    SELECT current_status, count(*) FROM outbox.workflow_states
    WHERE pipeline = 'posts' AND starts_with(entity_id, %s) GROUP BY current_status
"""
VERDICTS = """
    SELECT s.to_status, count(*) FROM outbox.workflow_states AS w
    JOIN outbox.state_changes AS s ON s.workflow_id = w.id AND s.from_status = 'WAITING_FOR_REVIEW'
    WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %s) GROUP BY s.to_status
"""
DEAD = """
    SELECT count(*) FROM outbox.dead_jobs WHERE pipeline = 'posts' AND starts_with(entity_id, %s)
"""


def run_demo(
    dsn: str,
    posts: Source,
    workers: int = 2,
    console: Console | None = None,
    amqp_url: str | None = None,
    page: str | None = None,
) -> int:
    """Runs the demo on a database; with `amqp_url`, also through RabbitMQ; with a `page`, with a person who reviews.

    Returns 0 if the books are right, and 1 if they are not or the demo had to stop.
    """
    console = console or Console()
    try:
        total = sum(1 for _ in posts)
        if not total:
            raise SourceError("there is no post with text to submit")
        with (
            connected(dsn) as conn,
            httpx.Client(trust_env=False) as client,
            Processes(dsn, amqp_url) as processes,
        ):
            director = Director(conn, client, processes, posts, total, workers, console, bool(amqp_url), page)
            checks = director.play()
    except (SourceError, DemoError) as error:
        console.print(f"✘ {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return conclude(console, checks)


def connected(dsn: str) -> Connection[Any]:
    """Opens a connection that names itself to Postgres as the demo's."""
    try:
        return connect(dsn, autocommit=True, application_name="outbox demo")
    except Error as error:
        raise DemoError(cannot_connect(dsn, error)) from None


def conclude(console: Console, checks: list[Check]) -> int:
    """Prints every check. Returns 0 if all are right, otherwise 1."""
    for check in checks:
        style = "green" if check.right else "red"
        console.print(str(check), style=style, markup=False, highlight=False, soft_wrap=True)
    right = all(check.right for check in checks)
    console.print("The books are right." if right else "The books are wrong.", style="bold")
    return 0 if right else 1


@dataclass
class Director:
    """One run. Its posts have entity ids of their own, so it can be repeated on the same database."""

    conn: Connection[Any]
    client: httpx.Client
    processes: Processes
    source: Source
    total: int
    number_of_workers: int
    console: Console
    ships: bool
    page: str | None = None

    def play(self) -> list[Check]:
        """Prepares, plays, stops, reports and checks the run."""
        self.run = f"demo-{uuid4().hex[:8]}/"
        self.prepare()
        with Screen(self.console, self.total) as self.screen:
            self.start()
            self.until_all_have_ended()
            codes = self.processes.stop(self.workers)
            if self.shipping:
                codes += self.shipping.stop()
        stats = self.world_stats()
        report.show(self.console, self.conn, self.run, stats, self.kill_rows())
        checks = [*check_books(self.conn, self.run, self.monitor.submitted), *self.check_run(stats, codes)]
        if self.shipping:
            self.console.print(report.table("Messages to RabbitMQ", ["", ""], self.shipping.rows()))
            checks += self.shipping.checks()
        return checks

    def prepare(self) -> None:
        self.processes.run("migrate")
        for question, objection in OBJECTIONS.items():
            if found := self.conn.execute(question).fetchone():
                raise DemoError(f"{objection}: {found[0]}. Stop or remove it, or give the demo a database of its own.")
        self.processes.run("deploy", "--app", APP)
        crm = files(__package__).joinpath("crm.sql").read_text(encoding="utf-8")
        if self.conn.execute("SELECT to_regclass('demo_crm.enriched')").fetchone() == (None,):
            try:
                self.conn.execute(crm)
            except InsufficientPrivilege as error:
                raise DemoError(f"this role may not create the demo's CRM tables. Create them with:\n{crm}") from error

    def start(self) -> None:
        # Every post needs at least one request, so the outage always happens.
        self.url = self.processes.start_world(outage_after=self.total * 3 // 4)
        self.workers = [self.processes.start_worker() for _ in range(self.number_of_workers)]
        self.screen.say(f"posts: {self.total}, workers: {len(self.workers)}, and a service that fails at random")
        self.monitor = Monitor(self.conn, self.run, self.source, self.total)
        self.reviewer = Reviewer(self.conn, self.run, PATIENCE if self.page else 0.0)
        if self.page:
            self.screen.say(f"for {PATIENCE:.0f} seconds the reviews are yours: {self.page}approvals")
        self.killer = Killer(self.conn, self.processes, self.workers, self.enough_to_kill, self.screen.say)
        self.shipping = (
            Shipping(self.conn, self.processes, self.run, self.total, self.screen.say) if self.ships else None
        )

    def enough_to_kill(self) -> int:
        """Returns how many jobs a worker must hold to be killed: 4 after a quarter of the posts, 1 after the last."""
        if self.monitor.seen < self.total / 4:
            return 0
        return 1 if self.monitor.done else 4

    def until_all_have_ended(self) -> None:
        """Lets every actor act at its own pace, until no post can move any more."""
        actors: list[Actor] = [self.monitor, self.reviewer, self.killer, self]
        if self.shipping:
            actors.append(self.shipping)
        due = {id(actor): 0.0 for actor in actors}
        self.counts: dict[str, int] = {}
        self.dead = 0
        self.outage = "to come"
        self.moved_at = time.monotonic()
        while not self.has_ended():
            for actor in actors:
                if time.monotonic() >= due[id(actor)]:
                    actor.step()
                    due[id(actor)] = time.monotonic() + actor.every
            time.sleep(0.01)
        self.killer.step()
        self.screen.say("all posts have ended")

    every = 0.25

    def step(self) -> None:
        """Shows the run, reports the outage, and stops if something is wrong."""
        counts = dict(self.conn.execute(PROGRESS, (self.run,)).fetchall())
        if counts != self.counts or self.reviewer.waits:
            self.counts, self.moved_at = counts, time.monotonic()
        self.dead = self.conn.execute(DEAD, (self.run,)).fetchall()[0][0]
        self.screen.show(counts)
        self.tell_of_outage()
        for worker in self.workers:
            if worker.poll() is not None:
                raise DemoError(f"a worker has ended: {self.processes.last_words(worker)}")
        if time.monotonic() - self.moved_at > STALL:
            words = self.processes.last_words(self.workers[0])
            raise DemoError(f"no post has moved for {STALL:.0f} seconds: {counts}\n{words}")

    def tell_of_outage(self) -> None:
        stats = self.world_stats()
        if self.outage == "to come" and stats["outage"]:
            self.outage = "now"
            self.screen.say("the service is down: it drops every request")
        if self.outage == "now" and not stats["is_out"]:
            self.outage = "over"
            self.screen.say(f"the service is up again; it dropped {stats['outage']:g} requests")

    def has_ended(self) -> bool:
        """Tells whether every post is in a final status or its job is dead, and every message has arrived."""
        ended = sum(number for status, number in self.counts.items() if status in pipeline.final)
        arrived = self.shipping is None or self.shipping.done
        return self.monitor.done and ended + self.dead >= self.monitor.submitted and arrived

    def world_stats(self) -> dict[str, float]:
        try:
            stats: dict[str, float] = (
                self.client.get(f"{self.url}/stats", params={"about": self.run}).raise_for_status().json()
            )
        except httpx.HTTPError as error:
            raise DemoError(f"the service has ended: {error}") from error
        return stats

    def kill_rows(self) -> list[tuple[str, str]]:
        again = sorted(self.killer.again.values())
        verdicts = dict(self.conn.execute(VERDICTS, (self.run,)).fetchall())
        return [
            ("jobs it held", str(len(self.killer.held))),
            ("of these, run again by other workers", str(len(again))),
            ("half of them within", f"{again[len(again) // 2]:.1f} s" if again else "-"),
            ("the last after", f"{again[-1]:.1f} s" if again else "-"),
            ("reviews approved by hand", str(verdicts.get("APPROVED", 0))),
            ("reviews rejected by hand", str(verdicts.get("REJECTED", 0))),
        ]

    def check_run(self, stats: dict[str, float], codes: list[int]) -> list[Check]:
        """Checks that everything happened that the demo is meant to show."""
        completed = self.counts.get("COMPLETED", 0)
        told = stats["notifications"]
        held, again = len(self.killer.held), len(self.killer.again)
        return [
            Check(
                "the service counted one notification for each COMPLETED post",
                [] if told == completed else [f"{told:g} notifications: {completed} posts"],
            ),
            Check("the service had an outage", [] if stats["outage"] else ["outage: no request came during it"]),
            Check(
                "a worker was killed at work, and others ran every job that it held",
                [] if 0 < held == again else [f"the kill: {again} of {held} jobs ran again"],
            ),
            Check(
                "all other processes stopped cleanly",
                [f"exit code: {code}" for code in codes if code],
            ),
        ]
