"""Runs what is due in one sequence, by the engine's own statements: a generator of steps, which a runner takes."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from ..database import statements
from ..database.statements import text_array
from ..database.steps import Statement
from ..definition.outcome import Reject, Retry
from ..definition.pipeline import Pipeline
from ..definition.reasons import leaves
from ..definition.run import Kept, Run
from ..definition.schedule import Schedule
from ..definition.stage import Stage
from ..engine import claim, commit, effects, lease, maintenance, scheduler, transaction
from ..engine.apart import ALL
from ..engine.handle import begin
from ..engine.inflight import Counts
from ..engine.job import Failed, Finished, Job, Missed, Outcome, PutBack, Trouble, fail, refused
from ..engine.job_log import tell
from ..engine.lane import Lane, Lanes
from ..engine.pacing import ServerClock
from ..engine.release import CHANGED, HELD_UP
from ..engine.surroundings import Surroundings
from ..errors import HandlerError, InvalidInput
from ..texts import shown
from .running import own_name
from .steps import AfterCommit, Guard, Handle, InTransaction, PutBackSettings, Release, Rest, Steps, Undo

SQL = statements.load("sequence")

LEASE = 86_400.0
"""Seconds of the lease of a drain that sends no heartbeats: longer than any."""

LONGEST_REST = 1.0
"""Seconds that a drain waits at a time for a stage whose rate lets nothing start."""


@dataclass
class Sequence:
    """One drain. `kept` keeps what attempts leave for the next ones; `stages` are all unless they are given.

    `raise_errors` raises the exception of a handler, once its failure is written. With `retries`, a job whose attempt
    has failed runs again at once, and only its last failure is raised.
    """

    pipelines: list[Pipeline[Any]]
    kept: Kept
    stages: Collection[str] | None = None
    raise_errors: bool = True
    retries: bool = False
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        every = [*self.pipelines, *(each for p in self.pipelines for each in p.reactions.values())]
        self._names = text_array(pipeline.name for pipeline in every)
        chosen = None if self.stages is None else list(self.stages)
        nothing = chosen == [] or not any(pipeline.stages for pipeline in every)
        surroundings = Surroundings()
        self.lifespans = surroundings.lifespans
        self._lanes = Lanes() if nothing else Lanes.of(every, chosen, 1, surroundings.stage)
        schedules = [surroundings.schedule(each) for p in every for each in p.schedules.values()]
        self._schedules = {(each.pipeline, each.name): each for each in schedules}
        self.worker = 0
        self._clock = ServerClock()

    def steps(self) -> Steps[None]:
        """Runs until nothing is due."""
        told = {
            "name": own_name(),
            "stages": [lane.stage.queue for lane in self._lanes.values()],
            "lease": LEASE,
            "release": None,
        }
        while not self.worker:
            for (self.worker,) in (yield lease.SQL["worker_register"], told):
                pass
        while (yield from self._turn()):
            pass

    def leave(self) -> Statement:
        """Returns the statement that ends the lease, after the steps have ended, or an error has ended them."""
        return lease.SQL["worker_leave"], {"worker": self.worker}

    def _turn(self) -> Steps[bool]:
        """Runs up to one attempt of each stage; returns whether there may be more to do."""
        yield Guard()
        worked = yield from self._upkeep()
        yield PutBackSettings()
        yield Release()
        for schedule in (yield from self._due()):
            worked = (yield from self._tick(schedule)) or worked
        rests: list[float] = []
        for lane in self._lanes.values():
            yield Guard()
            jobs, again = yield from self._claim(lane)
            error = (yield from self._attempt(jobs)) if jobs else None
            yield Release()
            if error is not None:
                raise error
            worked = worked or bool(jobs)
            if again is not None:
                rests.append(again)
        if not worked and rests:
            yield Rest(min(LONGEST_REST, *rests))
            return True
        if not worked and self.retries:
            ((hastened,),) = yield SQL["jobs_hasten"], {"pipelines": self._names}
            return bool(hastened)
        return bool(worked)

    def _upkeep(self) -> Steps[bool]:
        """Does what is due without a handler; returns whether there was anything."""
        ((now,),) = yield SQL["clock"], {}
        nothing = {"everything": False, "pipelines": [], "stages": []}
        each = {**ALL, "limit": maintenance.BATCH, "now": now}
        look = maintenance.SQL
        (found,) = yield look["maintenance_look"], {**nothing, "now": now}
        due_in, deadline_in, remind_in, orphans, parents, *_ = found
        worked = 0
        if due_in is not None and due_in <= 0:
            worked += (yield look["jobs_promote_due"], each)[0][0]
        if deadline_in is not None and deadline_in <= 0:
            worked += (yield look["deadlines_fire"], each)[0][1]
        if parents:
            worked += (yield look["parents_join"], each)[0][0]
        if orphans:
            worked += (yield look["orphans_cancel"], each)[0][0]
            yield look["orphans_forget"], {}
        if remind_in is not None and remind_in <= 0:
            worked += (yield look["approvals_escalate"], each)[0][0]
            worked += (yield look["approvals_remind"], each)[0][0]
        return worked > 0

    def _due(self) -> Steps[list[Schedule]]:
        if not self._schedules:
            return []
        mine = {"pipelines": [name for name, _ in self._schedules], "schedules": [name for _, name in self._schedules]}
        rows = yield scheduler.SQL["schedules_look"], mine
        return [self._schedules[pipeline, name] for pipeline, name, *_, due_in in rows if due_in <= 0]

    def _tick(self, schedule: Schedule) -> Steps[bool]:
        """Runs a due tick; returns whether it ran."""
        ticking = scheduler.ticking
        is_async = inspect.iscoroutinefunction(schedule.function)
        ended = yield InTransaction(
            f"schedule {schedule.label}", is_async, schedule.timeout, lambda conn: ticking(conn, schedule)
        )
        yield PutBackSettings()
        if isinstance(ended, scheduler.Ran) and ended.hooks:
            yield AfterCommit(f"schedule {schedule.label}", is_async, schedule.timeout, ended.hooks)
        if isinstance(ended, scheduler.Failed):
            yield scheduler.put_off(schedule, ended)
            if self.raise_errors:
                raise ended.error
        return isinstance(ended, scheduler.Ran)

    def _claim(self, lane: Lane) -> Steps[tuple[list[Job], float | None]]:
        """Claims a job, or as many as the stage's batch has; also returns the seconds until its limits let it go on."""
        asked = [(lane, lane.stage.batch or 1)]
        if lane.stage.limits is None:
            statement, params = claim.request(self.worker, asked, 0.0, careful=True)
            rows = yield statement, {**params, "marks": [0]}
            claim.receive(self.worker, self._lanes, rows)
            again = None
        else:
            rows = yield claim.request_limited(self.worker, asked, 0.0, careful=True)
            _, again = claim.receive_limited(self.worker, self._lanes, rows, self._clock, 0.0).get(lane, (0, None))
        jobs = lane.drop_waiting()
        for job in jobs:
            job.starts, job.checkpoints = 0.0, self.kept  # a start time is a fraction of a second away
        return jobs, again

    def _attempt(self, jobs: list[Job]) -> Steps[BaseException | None]:
        """Runs the attempt of these jobs of a stage, and writes how it has ended. Returns the error to raise."""
        stage = jobs[0].stage
        if stage.running:
            versions = dict((yield claim.start(jobs)))
            yield PutBackSettings()
            for job in jobs:
                job.status, job.version = stage.running, versions.get(job.workflow_id, job.version)
        if stage.transaction:
            return (yield from self._attempt_in_transaction(jobs))
        (job,) = jobs
        run = begin(job)
        if not isinstance(run, Run):
            return (yield from self._end(job, run))
        yield Guard()
        outcome: Outcome = yield Handle(run)
        yield Release()  # an error that the handler has left in the transaction goes with its writes
        return (yield from self._end(job, outcome))

    def _attempt_in_transaction(self, jobs: list[Job]) -> Steps[BaseException | None]:
        stage = jobs[0].stage
        try:
            ended = yield InTransaction(
                f"stage {stage.queue}", stage.is_async, stage.timeout, lambda conn: transaction.attempt(conn, jobs)
            )
        except TimeoutError as error:
            ended = transaction.Failures([(job, fail(job, error)) for job in jobs])
        yield PutBackSettings()
        match ended:
            case transaction.Committed(finished):
                self.counts.done += len(jobs)
                for _, outcome in finished:
                    if outcome.hooks:
                        yield AfterCommit(f"stage {stage.queue}", stage.is_async, stage.timeout, outcome.hooks)
                return None
            case transaction.Failures(failed):
                return (yield from self._all([self._end(job, outcome) for job, outcome in failed]))
            case transaction.RolledBackTogether():
                return (yield from self._all([self._attempt_in_transaction([job]) for job in jobs]))
            case PutBack(trouble):
                return (yield from self._put_back(jobs, trouble))
            case transaction.HeldUp():
                return (yield from self._put_back(jobs, HELD_UP))
            case transaction.NotHeld():
                unchanged = {"id": jobs[0].workflow_id, "version": jobs[0].version}
                if (yield commit.SQL["workflow_unchanged"], unchanged):
                    told = HandlerError("it changed its own job through run.connection; return what is to change")
                    return (yield from self._end(jobs[0], fail(jobs[0], told)))
                return (yield from self._put_back(jobs, CHANGED))
            case _:
                return (yield from self._put_back(jobs, CHANGED))

    def _all(self, each: Iterable[Steps[BaseException | None]]) -> Steps[BaseException | None]:
        """Takes the steps of each; returns the first error to raise."""
        first: BaseException | None = None
        for steps in each:
            error = yield from steps
            first = first or error
        return first

    def _end(self, job: Job, outcome: Outcome) -> Steps[BaseException | None]:
        match outcome:
            case Finished():
                yield Guard()
                try:
                    held = yield commit.finish([(job, outcome)])
                except psycopg.Error as error:
                    yield Undo()
                    yield PutBackSettings()
                    return (yield from self._end(job, refused(job, error)))
                yield Release()
                yield PutBackSettings()
                if not held:
                    return (yield from self._put_back([job], CHANGED))
                self.counts.done += 1
                return None
            case Failed():
                return (yield from self._fail(job, outcome))
            case PutBack(trouble):
                return (yield from self._put_back([job], trouble))
            case Missed():
                return (yield from self._put_back([job], CHANGED))

    def _fail(self, job: Job, outcome: Failed) -> Steps[BaseException | None]:
        ((now,),) = yield SQL["clock"], {}
        statement, params = commit.fail([(job, outcome)])
        yield statement, {**params, "now": now}
        yield PutBackSettings()
        tell(job, outcome)
        if outcome.delay is None:
            self.counts.dead += 1
        else:
            self.counts.retried += 1
        return self.error_of(outcome)

    def _put_back(self, jobs: list[Job], trouble: Trouble) -> Steps[BaseException | None]:
        if trouble.asked:
            ((asked,),) = yield effects.ask(jobs[0], trouble)
            if asked:
                return None
        rows = yield commit.put_back(jobs, trouble)
        delays = {workflow: delay for workflow, delay, _ in rows}
        again = [job for job in jobs if delays.get(job.workflow_id) is None]
        self.counts.lost += len(jobs) - len(again)
        return (yield from self._all([self._fail(job, fail(job, HandlerError(trouble.reason))) for job in again]))

    def error_of(self, outcome: Failed) -> BaseException | None:
        """Returns the error that a failed attempt raises in the test, or None."""
        if not self.raise_errors or (outcome.delay is not None and self.retries):
            return None
        error = outcome.raised or HandlerError(outcome.error)
        return None if is_meant(error) else error


def is_meant(error: BaseException) -> bool:
    """Returns whether a handler meant what follows: a Retry or a Reject is not an error."""
    return all(isinstance(each, Retry | Reject) for each in leaves(error))


def stages_before(pipelines: Iterable[Pipeline[Any]], until: str | Collection[str] | None) -> list[str] | None:
    """Returns all stages but those that take one of the statuses `until`. None if `until` is.

    Raises InvalidInput for a status that no pipeline has.
    """
    if until is None:
        return None
    pipelines = list(pipelines)
    ends = {until} if isinstance(until, str) else set(until)
    if unknown := ends.difference(*(pipeline.routes() for pipeline in pipelines)):
        raise InvalidInput("until", f"no pipeline has a status {shown(sorted(unknown, key=str)[0])}")
    every: list[Stage] = [stage for pipeline in pipelines for stage in pipeline.stages.values()]
    return [stage.queue for stage in every if not stage.on & ends]
