"""Specifies the engine in plain Python: what the tables contain after each step of any actor.

Read it as the engine's specification. It knows nothing of SQL: test_model.py does the same things to the model and to
the engine, and compares them. One thing happens at a time here; races/test_jobs.py tests what may meet at a row. Time
is a number of seconds, and stands still until it is advanced.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

DAY = 86_400
UNKNOWN, ILLEGAL = "OB003", "OB001"
WORDS = {UNKNOWN: "unknown status", ILLEGAL: "illegal change"}


@dataclass(frozen=True)
class Trouble:
    """Why an attempt comes to nothing that is not its own fault: the job is put back, `most` times.

    The first put-back waits for `first` seconds, the second for `next`, each further one for twice as long, up to
    `longest`. The bounds below are not the engine's own, so that random lives meet them.
    """

    reason: str
    first: float
    next: float
    longest: float
    most: int


CHANGED = Trouble("its data was changed meanwhile", 0, 0.5, 0.75, 3)
OTHER_CODE = Trouble("", 1, 2, 3, 2)
"""Only the code of another version can run the job: who put it back leaves it to others, and nothing else ends it."""

LEFT_FOR = 30
"""Seconds for which it does, from when the job is due."""


class Refused(Exception):
    """The change is not allowed. The database raises this SQLSTATE, and nothing has changed."""


class Stranded(Exception):
    """A deploy would leave workflows in unknown statuses. Nothing has changed."""


# A pipeline's definition.


@dataclass(frozen=True)
class Stage:
    """Takes workflows in status `on`. `running` is stored while its handler runs."""

    name: str
    on: str
    to: frozenset[str]
    running: str | None = None
    transaction: bool = False
    attempts: int = 3
    first: float = 2
    factor: float = 3
    longest: float = 5

    def delay(self, attempt: int) -> float | None:
        """Returns how long to wait after this attempt has failed; None if it was the last."""
        return None if attempt >= self.attempts else min(self.longest, self.first * self.factor ** (attempt - 1))


@dataclass(frozen=True)
class Rules:
    """A version of the pipeline. Changes that no stage makes are by hand. Statuses not mentioned are unknown."""

    initial: str
    final: frozenset[str]
    stages: tuple[Stage, ...]
    by_hand: frozenset[tuple[str, str]]

    @property
    def legal(self) -> set[tuple[str, str]]:
        changes = set(self.by_hand)
        for stage in self.stages:
            changes |= {(stage.on, to) for to in stage.to}
            if stage.running:
                changes |= {(stage.on, stage.running)} | {(stage.running, to) for to in stage.to}
        return changes

    @property
    def routes(self) -> dict[str, Stage | None]:
        """The stage that takes each status; None where a workflow waits or has ended."""
        known: dict[str, Stage | None] = dict.fromkeys({self.initial, *self.final, *itertools.chain(*self.legal)})
        for stage in self.stages:
            known[stage.on] = stage
            if stage.running:
                known[stage.running] = stage
        return known


@dataclass(frozen=True)
class By:
    """Who makes a change, and why."""

    actor: str
    reason: str | None = None


# What a handler does in an attempt.


@dataclass(frozen=True)
class Returns:
    """It returns: `data` is the new data (None: unchanged), `to` the status it names, `topics` what it published to."""

    to: str | None = None
    data: int | None = None
    topics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Raises:
    """It raises: `kind` is Retry (`after` seconds, or by the stage's back-off), Reject, or any error."""

    kind: str
    after: float | None = None


Outcome = Returns | Raises


# What the tables contain.


@dataclass
class Job:
    """A stage must run. `entered` is the workflow's version when it came to the stage's status.

    `claim` is the fence: no two claims have the same number. `due` is False while the job is scheduled for `run_at`.
    `careful` has it run beside no other such job: its worker died under it, and one attempt is left. `released` is how
    often it was put back though its handler had been at work, `released_by` is the worker whose code could not run it.
    """

    stage: str
    status: str
    entered: int
    run_at: float
    attempt: int = 0
    due: bool = True
    careful: bool = False
    owner: int | None = None
    claim: int | None = None
    claimed_at: float | None = None
    error: str | None = None
    released: int = 0
    released_by: int | None = None
    id: int | None = None  # the order of claims; the database gives it, see test_model.py

    def free(self, *, burnt: bool) -> None:
        """Takes the job from its owner. An attempt that isn't burnt doesn't count."""
        self.owner = self.claim = self.claimed_at = None
        self.attempt -= not burnt


@dataclass
class Dead:
    stage: str
    status: str
    entered: int
    attempts: int
    error: str
    died_at: float


@dataclass(frozen=True)
class Change:
    """A row of the history."""

    source: str | None
    target: str
    version: int
    actor: str
    reason: str | None
    stage: str | None
    attempt: int | None
    at: float


@dataclass
class Workflow:
    status: str
    data: dict[str, Any]
    created: float
    updated: float
    version: int = 1
    job: Job | None = None
    dead: Dead | None = None  # never together with a job
    history: list[Change] = field(default_factory=list)


@dataclass
class Worker:
    lease: float
    beat: float


@dataclass(frozen=True)
class Attempt:
    """What a worker knows of a job that it has claimed, with the stage as its own code defines it."""

    worker: int
    claim: int
    entity: str
    stage: Stage
    number: int
    entered: int
    careful: bool
    status: str
    version: int
    data: dict[str, Any]


class Model:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.now = 0.0
        self.workflows: dict[str, Workflow] = {}
        self.workers: dict[int, Worker] = {}
        self.messages: list[tuple[str, str | None]] = []  # topic and key, in order of writing
        self.effects: list[tuple[str, int]] = []  # what handlers wrote through run.connection: entity, attempt
        self.histories_of_deleted: list[list[Change]] = []
        self._claims = itertools.count(1)

    # Starting and changing workflows, by anyone.

    def submit(self, entity: str, data: dict[str, Any], by: By) -> bool:
        """Starts a new entity in the initial status. An existing one stays as it is, whatever the data."""
        if entity in self.workflows:
            return False
        workflow = Workflow(self.rules.initial, data, self.now, self.now)
        workflow.history.append(Change(None, workflow.status, 1, by.actor, by.reason, None, None, self.now))
        self._make_job(workflow)
        self.workflows[entity] = workflow
        return True

    def change(
        self, entities: Iterable[str], by: By, *, to: str | None = None, data: dict[str, Any] | None = None
    ) -> int:
        """Runs one statement by hand on several entities: all of it is legal, or nothing happens. Returns the count."""
        found = [self.workflows[entity] for entity in entities if entity in self.workflows]
        for workflow in found:
            self._require_legal(workflow, to or workflow.status)
        for workflow in found:
            self._move(workflow, to or workflow.status, data, by)
        return len(found)

    def _require_legal(self, workflow: Workflow, to: str) -> None:
        if to != workflow.status and to not in self.rules.routes:
            raise Refused(UNKNOWN)
        if to != workflow.status and (workflow.status, to) not in self.rules.legal:
            raise Refused(ILLEGAL)

    def _move(self, workflow: Workflow, to: str, data: dict[str, Any] | None, by: By, worker: int = 0) -> None:
        """Moves a workflow: the change is recorded once, ends the open or dead job, and makes the next job."""
        source, job = workflow.status, workflow.job
        if to == source and data in (None, workflow.data):
            return  # no change
        workflow.version += 1
        workflow.updated = self.now
        workflow.data = workflow.data if data is None else data
        if to == source:
            return  # an attempt on the old data is refused, but the job stays the same
        mine = job if job is not None and job.owner == worker else None
        workflow.history.append(
            Change(
                source,
                to,
                workflow.version,
                by.actor,
                by.reason,
                mine and mine.stage,
                mine and mine.attempt,
                self.now,
            )
        )
        workflow.status = to
        stage = self.rules.routes[to]
        if job is not None and stage is not None and stage.name == job.stage and to == stage.running:
            job.status = to  # in progress: the job goes on
        else:
            workflow.dead = None
            self._make_job(workflow)

    def _make_job(self, workflow: Workflow, entered: int | None = None) -> None:
        stage = self.rules.routes[workflow.status]
        workflow.job = stage and Job(stage.name, workflow.status, entered or workflow.version, self.now)

    def delete(self, entity: str) -> None:
        """Deletes a workflow by hand. Its history stays."""
        workflow = self.workflows.pop(entity, None)
        if workflow is not None and workflow.history:
            self.histories_of_deleted.append(workflow.history)

    def publish(self, topic: str) -> None:
        self.messages.append((topic, None))

    # Workers.

    def start_worker(self, worker: int, lease: float) -> None:
        self.workers[worker] = Worker(lease, self.now)

    def beat(self, worker: int) -> bool:
        """Sends a heartbeat; returns False if the lease was taken away."""
        if worker in self.workers:
            self.workers[worker].beat = self.now
        return worker in self.workers

    def leave(self, worker: int) -> None:
        self.workers.pop(worker, None)

    def claimable(self, worker: int, stages: Sequence[str], limit: int) -> tuple[list[str], list[str]]:
        """Returns what a claim takes: up to `limit` jobs of each stage, oldest first; and one careful job."""
        if worker not in self.workers:
            return [], []
        normal, careful = [], []
        for stage in stages:
            ready = {
                workflow.job.id: (entity, workflow.job)
                for entity, workflow in self.workflows.items()
                if workflow.job and workflow.job.stage == stage and workflow.job.due and workflow.job.owner is None
                if workflow.job.released_by != worker or workflow.job.run_at < self.now - LEFT_FOR
            }
            queue = [ready[id_] for id_ in sorted(ready)]
            normal += [entity for entity, job in queue if not job.careful][:limit]
            careful += [entity for entity, job in queue if job.careful][:1]
        return normal, careful

    def claim(self, worker: int, entity: str, stage: Stage) -> Attempt:
        """Claims a job. The claim counts the attempt, so a job that kills its worker dies in the end, too."""
        workflow = self.workflows[entity]
        job = workflow.job
        assert job is not None
        job.owner, job.claim, job.claimed_at, job.attempt = worker, next(self._claims), self.now, job.attempt + 1
        return Attempt(
            worker, job.claim, entity, stage, job.attempt, job.entered, job.careful,
            workflow.status, workflow.version, workflow.data,
        )  # fmt: skip

    def start(self, attempt: Attempt) -> Attempt | None:
        """Stores the stage's in-progress status. Returns None if the attempt no longer counts."""
        if not self._holds(attempt) or self.workflows[attempt.entity].version != attempt.version:
            return None
        workflow = self.workflows[attempt.entity]
        running = attempt.stage.running
        assert running is not None
        self._require_legal(workflow, running)
        self._move(workflow, running, None, By(f"worker-{attempt.worker}"), attempt.worker)
        return replace(attempt, status=running, version=workflow.version)

    def _holds(self, attempt: Attempt) -> bool:
        """Checks the fence: the job is still held by this very claim."""
        workflow = self.workflows.get(attempt.entity)
        return workflow is not None and workflow.job is not None and workflow.job.claim == attempt.claim

    def settle(self, attempt: Attempt, outcome: Outcome) -> str:
        """Returns how an attempt ends. If its job is no longer held, the attempt is lost and changes nothing."""
        stage = attempt.stage
        if attempt.status not in (stage.on, stage.running):  # a later version has brought it there: not for this code
            return self.not_for_this_code(attempt)
        if not isinstance(attempt.data.get("n"), int):
            return self.fail(attempt, "doesn't fit", None)  # stored by someone else: no handler can take it
        if isinstance(outcome, Raises):
            delay = stage.delay(attempt.number)
            if outcome.kind == "Reject":
                delay = None
            elif outcome.kind == "Retry" and delay is not None and outcome.after is not None:
                delay = outcome.after
            return self.fail(attempt, outcome.kind.lower(), delay)
        to = outcome.to or (min(stage.to) if len(stage.to) == 1 else None)
        if to not in stage.to:
            return self.fail(attempt, "HandlerError", stage.delay(attempt.number))
        if not self._holds(attempt):
            return "lost"
        workflow = self.workflows[attempt.entity]
        if workflow.version != attempt.version:
            return self.put_back(attempt)
        try:
            self._require_legal(workflow, to)
        except Refused as refused:  # another version of the pipeline was deployed in the meantime
            return self.refuse(attempt, refused)
        data = None if outcome.data is None else {"n": outcome.data}
        self._move(workflow, to, data, By(f"worker-{attempt.worker}"), attempt.worker)
        self.messages += [(topic, attempt.entity) for topic in outcome.topics]
        if stage.transaction:
            self.effects.append((attempt.entity, attempt.number))
        return "done"

    def not_for_this_code(self, attempt: Attempt) -> str:
        """Another worker's code takes it, if the pipeline has this stage take the status; else it was made by hand."""
        takes = f"takes {attempt.stage.on}, and the workflow is in {attempt.status}"
        deployed = self.rules.routes.get(attempt.status)
        if deployed is not None and deployed.name == attempt.stage.name:
            return self.put_back(attempt, replace(OTHER_CODE, reason=takes))
        return self.fail(attempt, takes, attempt.stage.delay(attempt.number))

    def refuse(self, attempt: Attempt, refused: Refused) -> str:
        """Fails an attempt whose change the database refuses, like any other failure."""
        return self.fail(attempt, WORDS[str(refused)], attempt.stage.delay(attempt.number))

    def fail(self, attempt: Attempt, error: str, delay: float | None, *, in_row: bool = False) -> str:
        """Later, after a wait; or never: then a dead job keeps the error and waits for a person. The put-backs before it
        count no more, unless they are why it fails."""
        if not self._holds(attempt):
            return "lost"
        workflow = self.workflows[attempt.entity]
        job = workflow.job
        assert job is not None
        if delay is None:
            self._die(workflow, error)
            return "dead"
        job.free(burnt=True)
        job.careful, job.error, job.due, job.run_at = False, error, delay <= 0, self.now + delay
        job.released = job.released if in_row else 0
        return "retried"

    def put_back(self, attempt: Attempt, trouble: Trouble = CHANGED) -> str:
        """Its data was changed, or it needs other code: it runs again, and burns nothing. But each time it waits for
        longer, and what never ends has it fail in the end."""
        if not self._holds(attempt):
            return "lost"
        job = self.workflows[attempt.entity].job
        assert job is not None
        if job.released >= trouble.most:
            delay = attempt.stage.delay(attempt.number) if trouble is CHANGED else None
            return self.fail(attempt, f"{trouble.reason}, {trouble.most} times in a row", delay, in_row=True)
        delay = trouble.first if job.released == 0 else min(trouble.longest, trouble.next * 2 ** (job.released - 1))
        job.free(burnt=False)
        job.released, job.released_by = job.released + 1, None if trouble is CHANGED else attempt.worker
        job.error, job.due, job.run_at = trouble.reason, delay <= 0, self.now + delay
        return "again"

    def give_back(self, attempt: Attempt) -> str:
        """Releases a job that has not begun, so nothing is counted."""
        if not self._holds(attempt):
            return "lost"
        job = self.workflows[attempt.entity].job
        assert job is not None
        job.free(burnt=False)
        return "again"

    def give_back_unknown(self, worker: int, known: Collection[str]) -> None:
        """Frees the jobs held under the worker's id that it doesn't know of, because a claim's answer was lost."""
        for entity, workflow in self.workflows.items():
            if workflow.job and workflow.job.owner == worker and entity not in known:
                workflow.job.free(burnt=False)

    def _die(self, workflow: Workflow, error: str) -> None:
        job = workflow.job
        assert job is not None
        workflow.dead = Dead(job.stage, job.status, job.entered, job.attempt, error, self.now)
        workflow.job = None

    # The maintenance that every worker does.

    def promote(self) -> int:
        """Makes scheduled jobs ready whose time has come."""
        promoted = [job for job in self._jobs() if job.owner is None and not job.due and job.run_at <= self.now]
        for job in promoted:
            job.due = True
        return len(promoted)

    def bury(self) -> set[int]:
        """Removes workers whose lease has run out."""
        gone = {worker for worker, row in self.workers.items() if row.beat + row.lease < self.now}
        for worker in gone:
            del self.workers[worker]
        return gone

    def sweep(self) -> tuple[int, int]:
        """Frees the jobs of lost workers; those at their last attempt die. Returns both counts."""
        attempts = {stage.name: stage.attempts for stage in self.rules.stages}
        freed = dead = 0
        for workflow in self.workflows.values():
            job = workflow.job
            if job is None or job.owner is None or job.owner in self.workers:
                continue
            error = f"worker {job.owner} was lost during attempt {job.attempt}"
            if job.attempt >= attempts[job.stage]:
                self._die(workflow, f"{error}, the last one")
                dead += 1
            else:
                job.free(burnt=True)
                job.careful, job.error, job.released = job.attempt >= attempts[job.stage] - 1, error, 0
                freed += 1
        return freed, dead

    def retain(
        self, *, workflows: float | None = None, history: float | None = None, dead: float | None = None
    ) -> None:
        """Deletes ended workflows, history and dead jobs' errors that are older than so many days."""
        for entity, workflow in list(self.workflows.items()):
            if workflows is not None and workflow.status in self.rules.final and self._old(workflow.updated, workflows):
                del self.workflows[entity]
            if dead is not None and workflow.dead is not None and self._old(workflow.dead.died_at, dead):
                workflow.dead.error = "dropped by retention"  # the job still counts as dead
        if history is not None:
            for told in (*(workflow.history for workflow in self.workflows.values()), *self.histories_of_deleted):
                told[:] = [change for change in told if not self._old(change.at, history)]
            self.histories_of_deleted = [told for told in self.histories_of_deleted if told]

    def _old(self, at: float, days: float) -> bool:
        return at < self.now - days * DAY

    def _jobs(self) -> list[Job]:
        return [workflow.job for workflow in self.workflows.values() if workflow.job]

    # People who operate it.

    def retry(self, entities: Iterable[str]) -> int:
        """Makes a job for each workflow that has none, with all attempts and the same idempotency key."""
        made = 0
        for entity in entities:
            workflow = self.workflows[entity]
            if workflow.job is None and self.rules.routes[workflow.status] is not None:
                self._make_job(workflow, workflow.dead and workflow.dead.entered)
                workflow.dead = None
                made += 1
        return made

    def deploy(self, new: Rules) -> None:
        """Deploys another version of the pipeline. Where a different stage takes a status, its jobs are replaced."""
        old, now = self.rules.routes, new.routes
        if any(workflow.status not in now for workflow in self.workflows.values()):
            raise Stranded
        self.rules = new
        for workflow in self.workflows.values():
            before, after = old[workflow.status], now[workflow.status]
            if (before and before.name) != (after and after.name):
                workflow.dead = None
                self._make_job(workflow, workflow.job and workflow.job.entered)

    def overview(self) -> dict[str, tuple[str | None, int, int, int, int, int]]:
        """Returns, by status, its stage, and how many workflows there are: all, ready, scheduled, running and dead."""
        rows = {}
        for status, stage in self.rules.routes.items():
            here = [workflow for workflow in self.workflows.values() if workflow.status == status]
            jobs = [workflow.job for workflow in here if workflow.job]
            running = sum(job.owner is not None for job in jobs)
            scheduled = sum(job.owner is None and not job.due and job.run_at > self.now for job in jobs)
            dead = sum(workflow.dead is not None for workflow in here)
            rows[status] = (
                stage and stage.name, len(here), len(jobs) - running - scheduled, scheduled, running, dead
            )  # fmt: skip
        return rows

    def resting(self) -> list[tuple[str, str]]:
        """Returns the workflows in a status that no stage takes and that is not final, with that status."""
        return sorted(
            (entity, workflow.status)
            for entity, workflow in self.workflows.items()
            if workflow.status not in self.rules.final and self.rules.routes.get(workflow.status) is None
        )
