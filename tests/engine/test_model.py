"""The engine does what the model says: random lives of a pipeline, and after each step all tables are compared.

`MODEL_EXAMPLES=5000` looks for longer, at random; without it the same examples run each time. A failure prints the
shortest life that shows it, and a line with which it can be run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any, TypeVar
from unittest.mock import patch
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import BaseModel
from pytest_postgresql.executors import NoopExecutor

from kit import fake_time
from kit import model as spec
from kit.databases import OWNER, clone, keep_statistics
from kit.model import By, Raises, Returns, Rules, Stage
from kit.servers import PostgresServer
from outbox import Backoff, Go, NoWorkflow, Pipeline, Reject, Retry, Run, Stranded, retry, retry_all
from outbox.client import dead
from outbox.database import session, statements, user_transaction
from outbox.database.steps import Statement
from outbox.definition import deploy, deployed
from outbox.definition.reasons import describe
from outbox.engine import claim, commit, release, transaction
from outbox.engine.apart import ALL
from outbox.engine.committer import Committer
from outbox.engine.handle import begin, handle_sync
from outbox.engine.inflight import Counts, InFlight
from outbox.engine.job import Failed, Job, PutBack, Trouble, fail, newer_worker
from outbox.engine.lane import Lanes
from outbox.engine.release import Releaser
from outbox.errors import HandlerError
from outbox.process import service

Conn = psycopg.Connection[Any]
T, U = TypeVar("T"), TypeVar("U")
WORKER = statements.load("lease")
MAINTENANCE = {**statements.load("maintenance"), **statements.load("retention")}
LEASE = 10.0
SLOTS = 3
RETENTION = {"workflows": "retention_workflows", "history": "retention_history", "dead": "retention_dead_jobs"}

VERSIONS = {
    "first": Rules(
        initial="NEW",
        final=frozenset({"DONE", "STOPPED"}),
        stages=(
            Stage("draft", on="NEW", to=frozenset({"DRAFTED"})),
            Stage("check", on="DRAFTED", to=frozenset({"WAITING", "GOOD"}), running="CHECKING", attempts=2),
            Stage("send", on="GOOD", to=frozenset({"DONE"}), transaction=True),
        ),
        by_hand=frozenset(
            {
                ("WAITING", "GOOD"),
                ("WAITING", "STOPPED"),
                ("NEW", "STOPPED"),
                ("DRAFTED", "NEW"),
                ("CHECKING", "STOPPED"),
            }
        ),
    ),
    "without a stage": Rules(
        initial="NEW",
        final=frozenset({"DONE", "STOPPED"}),
        stages=(
            Stage("draft", on="NEW", to=frozenset({"DRAFTED"}), attempts=1),
            Stage("send", on="GOOD", to=frozenset({"DONE", "WAITING"}), transaction=True, attempts=5),
        ),
        by_hand=frozenset({("DRAFTED", "WAITING"), ("DRAFTED", "GOOD"), ("WAITING", "GOOD"), ("NEW", "STOPPED")}),
    ),
    "with other stages": Rules(
        initial="NEW",
        final=frozenset({"DONE", "STOPPED"}),
        stages=(
            Stage("draft", on="NEW", to=frozenset({"DRAFTED"}), first=0),
            Stage("judge", on="DRAFTED", to=frozenset({"WAITING", "GOOD"})),
            Stage("ask", on="WAITING", to=frozenset({"GOOD", "STOPPED"}), attempts=1),
            Stage("send", on="GOOD", to=frozenset({"DONE"})),
        ),
        by_hand=frozenset({("DRAFTED", "NEW"), ("NEW", "GOOD"), ("GOOD", "NEW")}),
    ),
    "not in progress": Rules(
        initial="NEW",
        final=frozenset({"DONE", "STOPPED"}),
        stages=(
            Stage("draft", on="NEW", to=frozenset({"DRAFTED"}), running="DRAFTING"),
            Stage("check", on="DRAFTED", to=frozenset({"WAITING", "GOOD"}), attempts=4),
            Stage("send", on="GOOD", to=frozenset({"DONE"}), transaction=True),
        ),
        by_hand=frozenset({("WAITING", "GOOD"), ("WAITING", "STOPPED"), ("DRAFTING", "NEW")}),
    ),
}


class Doc(BaseModel):
    n: int


said: dict[str, spec.Outcome] = {}  # by the handlers that run next, by entity


def handler(run: Run[Doc]) -> Any:
    """Every stage's handler: it does what the test has decided."""
    if run._job.stage.transaction:
        run.connection.execute(
            "INSERT INTO fake.effects (entity, attempt) VALUES (%s, %s)", [run.entity_id, run.attempt]
        )
    outcome = said[run.entity_id]
    if isinstance(outcome, Returns):
        for topic in outcome.topics:
            run.publish(topic, {"of": run.entity_id})
        data = None if outcome.data is None else Doc(n=outcome.data)
        return data if outcome.to is None else Go(outcome.to, data)
    raise {"Retry": Retry(outcome.after, "retry"), "Reject": Reject("reject")}.get(outcome.kind, RuntimeError("error"))


def named(outcome: spec.Outcome, stage: Stage) -> spec.Outcome:
    """Say what status is meant by first and last."""
    if isinstance(outcome, Returns) and outcome.to in ("first", "last"):
        return replace(outcome, to=min(stage.to) if outcome.to == "first" else max(stage.to))
    return outcome


def as_pipeline(rules: Rules) -> Pipeline[Doc]:
    pipeline = Pipeline("p", data=Doc, initial=rules.initial, final=rules.final)
    for stage in rules.stages:
        pipeline.stage(
            stage.name,
            on=stage.on,
            to=stage.to,
            running=stage.running,
            transaction=stage.transaction,
            retry=Backoff(stage.first, stage.factor, stage.longest, stage.attempts, jitter=0),
        )(handler)
    for source, target in rules.by_hand:
        pipeline.allow(source, to=target)
    return pipeline


PIPELINES = {name: as_pipeline(rules) for name, rules in VERSIONS.items()}
STATUSES = sorted({status for rules in VERSIONS.values() for status in rules.routes} | {"NOWHERE"})

entities = st.sampled_from("abcdef")
numbers = st.integers(0, 3)
statuses = st.sampled_from(STATUSES)
slots = st.integers(0, SLOTS - 1)
processes = st.runner().flatmap(lambda lives: st.sampled_from(sorted(lives.processes)))
busy = st.runner().flatmap(lambda lives: st.sampled_from([n for n, p in sorted(lives.processes.items()) if p.held]))
returns = st.builds(
    Returns,
    to=st.sampled_from(["first", "last", "last", None, "WAITING"]),  # first and last of what the stage may go to
    data=st.none() | numbers,
    topics=st.lists(st.sampled_from(["t", "u"]), max_size=2).map(tuple),
)
raises = st.builds(Raises, st.just("Retry"), st.sampled_from([None, 0, 1, 20])) | st.builds(
    Raises, st.sampled_from(["Reject", "Error"])
)
outcomes = st.sampled_from([returns, returns, returns, raises]).flatmap(lambda kind: kind)
lists_of_outcomes = st.lists(outcomes, min_size=1, max_size=4)
steps_by_hand = st.one_of(
    st.tuples(st.just("submit"), entities, numbers),
    st.tuples(st.just("submit many"), st.lists(st.tuples(entities, numbers), max_size=4).map(tuple)),
    st.tuples(st.just("change"), st.frozensets(entities, min_size=1, max_size=3), statuses),
    st.tuples(st.just("edit"), st.frozensets(entities, min_size=1, max_size=3), numbers | st.just("not a number")),
    st.tuples(st.just("change and edit"), entities, statuses, numbers),
    st.tuples(st.just("publish"), st.sampled_from(["t", "u"])),
)
allowed_steps = st.runner().flatmap(
    lambda lives: st.sampled_from(lives.legal_steps(lives.model.workflows) or [("submit", "a", 0)])
)
steps_on_what_is_claimed = st.runner().flatmap(
    lambda lives: st.sampled_from(
        [*lives.legal_steps(lives.claimed()), *(("edit", frozenset({name}), 9) for name in sorted(lives.claimed()))]
    )
)


def both(promise: Callable[[], T], act: Callable[[], U]) -> tuple[T, U]:
    """What the model and the engine return. Or both refuse, for the same reason: then the engine's error is raised."""
    refused = promised = None
    try:
        promised = promise()
    except spec.Refused as error:
        refused = str(error)
    try:
        done = act()
    except psycopg.Error as error:
        if error.sqlstate != refused:
            raise AssertionError(f"the model says {refused}") from error
        raise
    assert refused is None, "the engine refuses it too"
    return promised, done


@dataclass
class Process:
    """A worker's process: the version of the pipeline that its code knows, and the attempts that it is at."""

    id: int
    version: str
    held: list[tuple[Job, spec.Attempt]] = field(default_factory=list)


class Link:
    """What a worker's loops need of a connection."""

    connections = 1

    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    async def repeat(
        self, statement: bytes, params: dict[str, Any], *, answers: frozenset[str] = frozenset()
    ) -> list[Any]:
        return self.conn.execute(statement, params).fetchall()


class Lives(RuleBasedStateMachine):
    """Does everything twice, to the engine and to the model."""

    def __init__(self, conn: Conn, admin: Conn, runner: asyncio.Runner) -> None:
        super().__init__()
        self.conn = conn
        self.runner = runner
        self.version = "first"
        self.model = spec.Model(VERSIONS["first"])
        self.processes: dict[int, Process] = {}
        self.zombies: list[tuple[Job, spec.Attempt]] = []
        self.ids: dict[str, str] = {}
        self.newest_job = 0
        admin.execute(CLEAN)
        fake_time.move(conn, 0)
        conn.execute("SELECT setseed(0)")
        deploy.deploy(conn, PIPELINES["first"])

    @initialize(names=st.frozensets(entities, min_size=2), slots=st.frozensets(slots, min_size=1, max_size=2))
    def begin(self, names: frozenset[str], slots: frozenset[int]) -> None:
        self.by_hand(("submit many", tuple((name, 0) for name in sorted(names))), By(OWNER))
        for slot in sorted(slots):
            self.start_worker(slot)

    # What strategies choose from: steps that do nothing show nothing.

    def claimed(self) -> set[str]:
        return {name for name, workflow in self.model.workflows.items() if workflow.job and workflow.job.claim}

    def scheduled(self) -> list[float]:
        jobs = [workflow.job for workflow in self.model.workflows.values() if workflow.job]
        return [job.run_at for job in jobs if not job.due]

    def legal_steps(self, names: Iterable[str]) -> list[tuple[Any, ...]]:
        return [
            ("change", frozenset({name}), to)
            for name in sorted(names)
            for source, to in sorted(self.model.rules.legal)
            if source == self.model.workflows[name].status
        ]

    @rule(what=st.runner().flatmap(lambda lives: st.sampled_from(lives.rarities())))
    def now_and_then(self, what: tuple[Any, ...]) -> None:
        """What is rarer than work. It is one rule, since rules are chosen evenly."""
        name, *args = what
        getattr(self, name)(*args)

    def rarities(self) -> list[tuple[Any, ...]]:
        return [
            *(("deploy", version) for version in VERSIONS if version != self.version),
            *(("start_worker", slot) for slot in range(SLOTS)),
            *(("end", slot, found) for slot in self.processes for found in (True, False)),
            *(("beat", slot) for slot in self.processes),
            *(("give_back", slot) for slot, process in self.processes.items() if process.held),
            *(
                ("wait", seconds, beating)
                for seconds in (1, LEASE, LEASE + 1, 2 * spec.DAY)
                for beating in (True, False)
            ),
            *(("delete", name) for name in self.model.workflows),
            *(("retain", kind, days) for kind in RETENTION for days in (0.0, 1.0)),
            *(
                ("set_status", name, to)
                for name in self.model.workflows
                for to in ("NOWHERE", "WAITING", "GOOD", "STOPPED")
            ),
            ("set_status", "nobody", "GOOD"),
            ("sweep",),
            ("promote",),
            ("fold_counts",),
            ("retry_all",),
        ]

    # By hand.

    def by_hand(self, step: tuple[Any, ...], by: By) -> None:
        """Take one step in the transaction that is open, if there is one. Raises what the database says against it."""
        kind, *args = step
        if kind == "submit":
            submitted = PIPELINES["first"].submit(self.conn, args[0], Doc(n=args[1]))
            assert submitted.created == self.model.submit(args[0], {"n": args[1]}, by)
            assert submitted.status == self.model.workflows[args[0]].status
        elif kind == "submit many":
            made = PIPELINES["first"].submit_many(self.conn, [(name, Doc(n=n)) for name, n in args[0]])
            assert made == sum([self.model.submit(name, {"n": n}, by) for name, n in args[0]])
        elif kind == "publish":
            self.conn.execute("INSERT INTO outbox.messages (topic, payload) VALUES (%s, '{}')", args)
            self.model.publish(args[0])
        else:
            names = [args[0]] if isinstance(args[0], str) else sorted(args[0])
            to = None if kind == "edit" else args[1]
            data = None if kind == "change" else {"n": args[-1]}
            changed, cursor = both(
                lambda: self.model.change(names, by, to=to, data=data),
                lambda: self.conn.execute(
                    "UPDATE outbox.workflow_states SET current_status = coalesce(%s, current_status),"
                    " metadata = coalesce(%s::jsonb, metadata) WHERE entity_id = ANY (%s)",
                    [to, None if data is None else json.dumps(data), names],
                ),
            )
            assert cursor.rowcount == changed

    @precondition(claimed)
    @rule(step=steps_on_what_is_claimed, claiming=st.booleans(), says=st.lists(outcomes, max_size=2))
    def do_while_it_is_handled(self, step: tuple[Any, ...], claiming: bool, says: Sequence[spec.Outcome]) -> None:
        """The next job of the workflow may be claimed at once, by the same process too; then handlers end."""
        self.by_hand(step, By(OWNER))
        for slot, process in self.processes.items():
            self.tables_say_what_the_model_says()
            if claiming:
                self.claim(slot, 2, True)
            if process.held and says:
                self.finish(slot, says)

    @precondition(lambda self: self.processes)
    @rule(slot=processes, times=st.integers(2, spec.CHANGED.most + 2), says=outcomes)
    def change_data_during_each_attempt(self, slot: int, times: int, says: spec.Outcome) -> None:
        """Somebody changes what is handled, attempt after attempt."""
        for time in range(times):
            self.beat(slot)
            self.claim(slot, 1, True)
            handled = frozenset(attempt.entity for _, attempt in self.processes[slot].held)
            if not handled:
                return
            self.by_hand(("edit", handled, 10 + time), By(OWNER))
            self.finish(slot, [says] * len(self.processes[slot].held))
            self.tables_say_what_the_model_says()
            if self.scheduled():
                self.until_a_job_is_due()

    @rule(
        steps=st.lists(allowed_steps | steps_by_hand, min_size=1, max_size=4),
        how=st.sampled_from(["one by one", "together", "together with savepoints", "and rolled back"]),
    )
    def do_by_hand(self, steps: Sequence[tuple[Any, ...]], how: str) -> None:
        """Alone, or in one transaction: then a refusal takes the others with it, unless it has a savepoint."""
        if how == "one by one":
            for step in steps:
                with contextlib.suppress(psycopg.Error):
                    self.by_hand(step, By(OWNER))
            return
        before = copy.deepcopy(self.model)
        try:
            with self.conn.transaction(force_rollback=how == "and rolled back"):
                self.conn.execute("SELECT outbox.act_as('sarah', 'several')")
                for step in steps:
                    try:
                        with self.conn.transaction():
                            self.by_hand(step, By("sarah", "several"))
                    except psycopg.Error:
                        if how != "together with savepoints":
                            raise
            if how == "and rolled back":
                self.model = before
        except psycopg.Error:
            self.model = before

    def set_status(self, name: str, to: str) -> None:
        """As the command line and the web page do."""
        if name not in self.model.workflows:
            with pytest.raises(NoWorkflow):
                PIPELINES["first"].move(self.conn, name, to)
            return
        with contextlib.suppress(psycopg.Error):
            _, status = both(
                lambda: self.model.change([name], By("operator", "why"), to=to),
                lambda: PIPELINES["first"].move(self.conn, name, to, by="operator", reason="why"),
            )
            assert status == to

    @precondition(lambda self: any(workflow.dead for workflow in self.model.workflows.values()))
    @rule(name=entities)
    def retry(self, name: str) -> None:
        if name not in self.model.workflows:
            with pytest.raises(NoWorkflow):
                retry(self.conn, PIPELINES["first"], name)
            return
        assert retry(self.conn, PIPELINES["first"], name) == bool(self.model.retry([name]))

    def retry_all(self) -> None:
        dead = [name for name, workflow in self.model.workflows.items() if workflow.dead]
        assert retry_all(self.conn) == self.model.retry(dead)

    def deploy(self, version: str) -> None:
        try:
            self.model.deploy(VERSIONS[version])
        except spec.Stranded:
            with pytest.raises(Stranded):
                deploy.deploy(self.conn, PIPELINES[version])
        else:
            deploy.deploy(self.conn, PIPELINES[version])
            self.version = version

    # Workers.

    def start_worker(self, slot: int) -> None:
        """A process starts; one that was there freezes, and may wake up later."""
        if slot in self.processes:
            self.zombies += self.processes.pop(slot).held
        deployed.require(self.conn, PIPELINES[self.version], list(PIPELINES[self.version].stages))
        parameters = {"name": "test", "stages": [], "lease": LEASE, "release": None}
        worker = self.conn.execute(WORKER["worker_register"], parameters).fetchone()[0]
        self.model.start_worker(worker, LEASE)
        self.processes[slot] = Process(worker, self.version)

    @precondition(lambda self: self.processes)
    @rule(slot=processes, limit=st.integers(1, 3), answered=st.sampled_from([True] * 5 + [False]))
    def claim(self, slot: int, limit: int, answered: bool) -> None:
        """It claims up to `limit` of each stage; now and then the answer is lost, and it says what it knows to hold."""
        process = self.processes[slot]
        lanes = Lanes.of([PIPELINES[process.version]], None, 10)
        alone = not any(job.careful for job, _ in process.held)
        request = claim.request(process.id, [(lane, limit) for lane in lanes.values()], 0, careful=alone)
        claim.receive(process.id, lanes, self.conn.execute(*request).fetchall())
        jobs = lanes.waiting()
        normal, careful = self.model.claimable(process.id, [name for _, name in lanes], limit)
        assert [job.entity_id for job in jobs if not job.careful] == normal
        chosen = [job.entity_id for job in jobs if job.careful]
        assert len(chosen) == (1 if alone and careful else 0)
        assert set(chosen) <= set(careful)
        stages = {stage.name: stage for stage in VERSIONS[process.version].stages}
        attempts = [self.model.claim(process.id, job.entity_id, stages[job.stage.name]) for job in jobs]
        if not answered:
            known = [job.workflow_id for job, _ in process.held]
            self.conn.execute(*claim.release_unknown(process.id, known, 0))
            self.model.give_back_unknown(process.id, {name for name, id_ in self.ids.items() if id_ in known})
            return
        for job, attempt in zip(jobs, attempts, strict=True):
            self.start(process, job, attempt)

    def start(self, process: Process, job: Job, attempt: spec.Attempt) -> None:
        """Store the in-progress status, where the stage has one."""
        started: spec.Attempt | None = attempt
        if job.stage.running and job.status in job.stage.on:
            try:
                started, versions = both(
                    lambda: self.model.start(attempt), lambda: dict(self.conn.execute(*claim.start([job])).fetchall())
                )
            except psycopg.Error as error:
                counts = self.runner.run(self.commit([(job, PutBack(newer_worker(describe(error))))]))
                told = self.model.put_back(attempt, replace(spec.OTHER_CODE, reason=spec.WORDS[error.sqlstate]))
                assert counts == Counts(dead=told == "dead")
                return
            assert (started is None) == (not versions)
            if started is not None:
                job.status, job.version = job.stage.running, versions[job.workflow_id]
        if started is not None:
            assert (job.entity_id, job.attempt, job.entered, job.careful, job.status, job.version) == (
                started.entity, started.number, started.entered, started.careful, started.status, started.version
            )  # fmt: skip
            assert json.loads(job.metadata) == started.data
            process.held.append((job, started))

    @precondition(lambda self: any(process.held for process in self.processes.values()))
    @rule(slot=busy, says=lists_of_outcomes)
    def finish(self, slot: int, says: Sequence[spec.Outcome]) -> None:
        """Some handlers of a process end, and their outcomes are committed together."""
        held = self.processes[slot].held
        ended, held[:] = held[: len(says)], held[len(says) :]
        self.settle([(job, attempt, outcome) for (job, attempt), outcome in zip(ended, says, strict=False)])

    @precondition(lambda self: self.processes)
    @rule(slot=processes, says=lists_of_outcomes)
    def work(self, slot: int, says: Sequence[spec.Outcome]) -> None:
        """The usual: what was claimed is done."""
        self.beat(slot)
        self.claim(slot, len(says), True)
        if self.processes[slot].held:
            self.finish(slot, says)

    @precondition(lambda self: any(process.held for process in self.processes.values()))
    @rule(slot=busy)
    def freeze(self, slot: int) -> None:
        """A process is frozen for longer than its lease; the others free what it held."""
        self.zombies += self.processes.pop(slot).held
        self.wait(LEASE + 1, True)
        self.sweep()

    @precondition(lambda self: self.zombies)
    @rule(outcome=outcomes)
    def zombie_finishes(self, outcome: spec.Outcome) -> None:
        """A process that was frozen wakes up, and goes on as if nothing had happened."""
        self.settle([(*self.zombies.pop(), outcome)])

    def give_back(self, slot: int) -> None:
        """What has not begun goes back."""
        held = self.processes[slot].held
        rows = self.conn.execute(*commit.release([job for job, _ in held])).fetchall()
        again = [self.ids[attempt.entity] for _, attempt in held if self.model.give_back(attempt) == "again"]
        assert sorted(row[0] for row in rows) == sorted(again)
        held.clear()

    def settle(self, ended: Sequence[tuple[Job, spec.Attempt, spec.Outcome]]) -> None:
        """Have a worker commit these outcomes: those of handlers' transactions first, then the others together.

        Handlers that share a transaction leave what each would leave alone: the model knows nothing of it.
        """
        ended = [(job, attempt, named(outcome, attempt.stage)) for job, attempt, outcome in ended]
        ended.sort(key=lambda item: not item[0].stage.transaction)
        counts = self.runner.run(self.commit([(job, outcome) for job, _, outcome in ended]))
        told = Counter(self.model.settle(attempt, outcome) for _, attempt, outcome in ended)
        assert counts == Counts(told["done"], told["retried"], told["dead"], told["lost"])

    async def commit(self, ended: Sequence[tuple[Job, spec.Outcome | PutBack]]) -> Counts:
        """What attempt.py, transactional.py and committer.py do with handlers' outcomes."""
        link, inflight = Link(self.conn), InFlight(Lanes())
        releaser = Releaser(link, inflight)
        sharing: list[Job] = []
        for job, outcome in ended:
            if isinstance(outcome, PutBack):
                await releaser.put_back([job], outcome.trouble)
                continue
            said[job.entity_id] = outcome
            if job.stage.transaction:
                sharing.append(job)
                continue
            run = begin(job)
            if isinstance(run, PutBack):
                await releaser.put_back([job], run.trouble)
            else:
                inflight.end(job, run if isinstance(run, Failed) else handle_sync([run])[0])
        for some, how in self.in_transactions(sharing):
            match how:
                case transaction.Committed(finished):
                    inflight.committed_alone(finished)
                case transaction.Failures(failed):
                    for job, result in failed:
                        inflight.end(job, result)
                case transaction.NotHeld() if await releaser.is_unchanged(some[0]):
                    inflight.end(some[0], fail(some[0], HandlerError("it changed its own workflow")))
                case transaction.NotHeld():
                    await releaser.not_held(some)
                case PutBack(trouble):
                    await releaser.put_back(some, trouble)
                case other:
                    raise AssertionError(other)
        committing = asyncio.create_task(Committer([link], link, inflight, releaser).run())
        while inflight.uncommitted:
            await asyncio.sleep(0)
        await service.cancel(committing)
        return inflight.counts

    def in_transactions(self, jobs: list[Job]) -> Iterator[tuple[list[Job], transaction.Ended]]:
        """Call the handlers of one stage, in turns where there are several, and alone where these come to nothing."""
        while len(jobs) > 1:
            took = user_transaction.run(self.conn, transaction.take_turns(self.conn, jobs, self.cleaned()))
            assert (took.odd, took.conflict) == ("", False)
            jobs = took.left
            for some, how in took.ended:
                if isinstance(how, transaction.RolledBackTogether):
                    for job in some:
                        yield from self.in_transactions([job])
                else:
                    yield some, how
        for job in jobs:
            yield [job], user_transaction.run(self.conn, transaction.attempt(self.conn, [job]))

    def cleaned(self) -> Statement:
        """What puts a session back after a turn, with the time as it is."""
        with patch.dict(session.READING, {"fake.seconds": str(self.model.now)}):
            return session.clean("handler")

    def beat(self, slot: int) -> None:
        """A process whose lease was taken away learns it, and takes a new id; what it was at, it may be at still."""
        worker = self.processes[slot].id
        there = self.conn.execute(WORKER["worker_beat"], {"worker": worker, "watched": False}).fetchone()
        assert (there is not None) == self.model.beat(worker)
        if there is None:
            self.start_worker(slot)

    def end(self, slot: int, found: bool) -> None:
        """A process ends by itself, or is killed and found dead: what it holds is free at the next sweep."""
        worker = self.processes.pop(slot).id
        if found:
            assert [row[0] for row in self.maintain("workers_bury", dead=[worker], leases=False, now=None)] == (
                [worker] if worker in self.model.workers else []
            )
        else:
            self.conn.execute(WORKER["worker_leave"], {"worker": worker})
        self.model.leave(worker)

    # Time, and what happens on the side.

    def wait(self, seconds: float, beating: bool) -> None:
        self.model.now += seconds
        fake_time.move(self.conn, self.model.now)
        if beating:
            for slot in list(self.processes):
                self.beat(slot)

    @precondition(scheduled)
    @rule()
    def until_a_job_is_due(self) -> None:
        self.wait(max(0, min(self.scheduled()) - self.model.now), True)
        self.promote()

    def promote(self) -> None:
        promoted = self.maintain("jobs_promote_due", limit=100, now=None)[0][0]
        assert promoted == self.model.promote()

    def sweep(self) -> None:
        gone = {row[0] for row in self.maintain("workers_bury", dead=[], leases=True, now=None)}
        assert gone == self.model.bury()
        assert self.maintain("jobs_sweep", limit=100)[0][:2] == self.model.sweep()

    def fold_counts(self) -> None:
        self.maintain("counts_fold")

    def delete(self, name: str) -> None:
        self.conn.execute("DELETE FROM outbox.workflow_states WHERE entity_id = %s", [name])
        self.model.delete(name)

    def retain(self, what: str, days: float) -> None:
        with self.conn.transaction():
            self.conn.execute("SELECT set_config('outbox.retention', 'on', true)")
            self.maintain(RETENTION[what], days=days, limit=100)
        self.model.retain(**{what: days})

    def maintain(self, name: str, **params: Any) -> list[Any]:
        cursor = self.conn.execute(MAINTENANCE[name], {**ALL, **params})
        return cursor.fetchall() if cursor.description else []

    def id_of(self, name: str) -> UUID:
        return UUID(self.ids[name]) if name in self.ids and name in self.model.workflows else UUID(int=0)

    # The comparison.

    @invariant()
    def tables_say_what_the_model_says(self) -> None:
        tables = self.conn.execute(TABLES).fetchone()[0]
        self.learn_ids(tables)
        assert self.readable(tables) == self.promised()

    def learn_ids(self, tables: dict[str, Any]) -> None:
        """Ids are the database's to give: of a workflow any, of a job a higher one than any before."""
        self.ids = {row["entity"]: row["id"] for row in tables["workflows"]}
        jobs = {row["entity"]: row["id"] for row in tables["jobs"]}
        for name, workflow in self.model.workflows.items():
            if workflow.job is not None and workflow.job.id is None and name in jobs:
                assert jobs[name] > self.newest_job, "a later job is claimed later"
                workflow.job.id = jobs[name]
        self.newest_job = max([self.newest_job, *jobs.values()])

    def readable(self, tables: dict[str, Any]) -> dict[str, Any]:
        """The tables with names in place of workflows' ids, and errors cut to what the model says of them."""
        names = {id_: name for name, id_ in self.ids.items()}
        histories: dict[str, list[Any]] = {}
        for id_, *row in tables.pop("changes"):
            histories.setdefault(id_, []).append(tuple(row))
        for kind in ("job", "dead"):
            rows = tables[f"{kind}s"] = {row.pop("entity"): row for row in tables[f"{kind}s"]}
            for name, row in rows.items():
                promise = getattr(self.model.workflows.get(name), kind, None)
                if promise is not None and promise.error and promise.error.lower() in (row["error"] or "").lower():
                    row["error"] = promise.error
        for row in tables["workflows"]:
            del row["id"]
        return {
            **tables,
            "workflows": {row.pop("entity"): row for row in tables["workflows"]},
            "histories": {names[id_]: rows for id_, rows in histories.items() if id_ in names},
            "histories of deleted": sorted((rows for id_, rows in histories.items() if id_ not in names), key=repr),
            "messages": by_key(tables["messages"]),
            "effects": sorted(map(tuple, tables["effects"])),
            "overview": {status: tuple(row) for status, *row in tables["overview"]},
            "resting": [tuple(row) for row in tables["resting"]],
        }

    def promised(self) -> dict[str, Any]:
        """The model in the shape of the tables."""
        workflows = self.model.workflows
        jobs = {name: asdict(workflow.job) for name, workflow in workflows.items() if workflow.job}
        for job in jobs.values():
            del job["claim"]
        return {
            "workflows": {
                name: {
                    "status": w.status,
                    "data": w.data,
                    "version": w.version,
                    "created": w.created,
                    "updated": w.updated,
                }
                for name, w in workflows.items()
            },
            "jobs": jobs,
            "deads": {name: asdict(workflow.dead) for name, workflow in workflows.items() if workflow.dead},
            "histories": {name: [astuple(c) for c in w.history] for name, w in workflows.items() if w.history},
            "histories of deleted": sorted(
                ([astuple(c) for c in told] for told in self.model.histories_of_deleted), key=repr
            ),
            "messages": by_key(self.model.messages),
            "effects": sorted(self.model.effects),
            "workers": {str(id_): [worker.lease, worker.beat] for id_, worker in self.model.workers.items()},
            "overview": self.model.overview(),
            "resting": self.model.resting(),
        }


def by_key(messages: Iterable[Sequence[str | None]]) -> dict[str | None, list[str | None]]:
    """Topics by key: within one there is an order, between two none that is promised."""
    topics: dict[str | None, list[str | None]] = {}
    for topic, key in messages:
        topics.setdefault(key, []).append(topic)
    return topics


TABLES = b"""
SELECT json_build_object(
    'workflows', coalesce((SELECT json_agg(json_build_object(
            'id', w.id, 'entity', w.entity_id, 'status', w.current_status, 'data', w.metadata, 'version', w.version,
            'created', fake.seconds(w.created_at), 'updated', fake.seconds(w.updated_at)))
        FROM outbox.workflow_states AS w), '[]'),
    'jobs', coalesce((SELECT json_agg(json_build_object(
            'entity', coalesce(w.entity_id, j.workflow_id::text), 'id', j.id, 'stage', j.stage, 'status', j.status,
            'entered', j.entered, 'run_at', fake.seconds(j.run_at), 'attempt', j.attempt, 'due', j.due,
            'careful', j.careful, 'owner', j.owner, 'claimed_at', fake.seconds(j.claimed_at), 'error', j.error,
            'released', j.released, 'released_by', j.released_by))
        FROM outbox.jobs AS j LEFT JOIN outbox.workflow_states AS w ON w.id = j.workflow_id), '[]'),
    'deads', coalesce((SELECT json_agg(json_build_object(
            'entity', coalesce(w.entity_id, d.workflow_id::text), 'stage', d.stage, 'status', d.status,
            'entered', d.entered, 'attempts', d.attempts, 'error', d.error, 'died_at', fake.seconds(d.died_at)))
        FROM outbox.dead_jobs AS d LEFT JOIN outbox.workflow_states AS w ON w.id = d.workflow_id), '[]'),
    'changes', coalesce((SELECT json_agg(json_build_array(
            c.workflow_id, c.from_status, c.to_status, c.version, c.actor, c.reason, c.stage, c.attempt,
            fake.seconds(c.at)) ORDER BY c.version)
        FROM outbox.state_changes AS c), '[]'),
    'messages', coalesce((SELECT json_agg(json_build_array(m.topic, m.key) ORDER BY m.id) FROM outbox.messages AS m), '[]'),
    'effects', coalesce((SELECT json_agg(json_build_array(e.entity, e.attempt)) FROM fake.effects AS e), '[]'),
    'workers', coalesce((SELECT json_object_agg(w.id, json_build_array(
            extract(epoch FROM w.lease), fake.seconds(w.beat_at)))
        FROM outbox.workers AS w), '{}'),
    'overview', (SELECT json_agg(json_build_array(o.status, o.stage, o.workflows, o.ready, o.scheduled, o.running, o.dead))
        FROM outbox.overview AS o),
    'resting', coalesce((SELECT json_agg(json_build_array(w.entity_id, s.status) ORDER BY w.entity_id)
        FROM outbox.resting AS s LEFT JOIN outbox.workflow_states AS w ON w.id = s.workflow_id), '[]')
)"""
# The same life must go the same way again: ids are in no order that a reader could rely on, but in the same each time.
PREPARE = """
CREATE TABLE fake.effects (id integer GENERATED ALWAYS AS IDENTITY, entity text, attempt integer);
GRANT ALL ON fake.effects TO PUBLIC;
CREATE SEQUENCE fake.ids;
GRANT ALL ON fake.ids TO PUBLIC;
CREATE OR REPLACE FUNCTION outbox.uuid7() RETURNS uuid LANGUAGE sql VOLATILE RETURN md5(nextval('fake.ids')::text)::uuid;
"""
# The history's triggers are off for the session that does it.
CLEAN = """
TRUNCATE outbox.workflow_states, outbox.state_changes, outbox.actions, outbox.jobs, outbox.dead_jobs, outbox.messages, outbox.workers,
    outbox.status_counts, outbox.status_flow, outbox.resting, outbox.dead_counts, outbox.error_kinds, outbox.pipelines, outbox.stages, outbox.routes, outbox.legal_changes, fake.effects RESTART IDENTITY;
ALTER SEQUENCE fake.ids RESTART;
"""


@pytest.fixture(scope="module")
def world(server: PostgresServer, empty_template: NoopExecutor) -> Iterator[Callable[[], Lives]]:
    """Makes worlds to live in, one after the other, in a database with a fake clock."""
    with (
        clone(empty_template, "model") as owners,
        server.admin("model") as admin,
        asyncio.Runner() as runner,
        pytest.MonkeyPatch.context() as changed,
    ):
        changed.setattr(session, "transaction", fake_time.plain_transaction)  # as a deploy's
        changed.setattr(transaction, "LONGEST", 60.0)
        changed.setattr(release, "CHANGED", Trouble(**asdict(spec.CHANGED)))
        changed.setattr("outbox.engine.job.NEWER_WORKER", spec.OTHER_CODE.first)
        changed.setattr("outbox.engine.job.NEWER_WORKER_LONGEST", float(spec.OTHER_CODE.longest))
        changed.setattr("outbox.engine.job.NEWER_WORKER_MOST", spec.OTHER_CODE.most)
        dsn = fake_time.install(server.dsn("model"), owners)
        admin.execute(PREPARE)
        keep_statistics(admin)  # of several jobs that may be claimed, another plan may take another one
        admin.execute("SET session_replication_role = replica")
        with psycopg.connect(dsn, autocommit=True) as conn:
            yield lambda: Lives(conn, admin, runner)


EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "0"))
PROFILE = settings(
    max_examples=EXAMPLES or 60,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def test_whatever_happens_the_tables_say_what_the_model_says(world: Callable[[], Lives]) -> None:
    run_state_machine_as_test(world, settings=PROFILE)


MUTANTS = {
    "a finish on data that was changed": (4, commit, "jobs_finish_if_held", " AND w.version = o.version", ""),
    "a finish by any worker": (
        3,
        commit,
        "jobs_finish_if_held",
        " AND j.owner IS NOT DISTINCT FROM %(worker)s::integer AND j.attempt = workflow.attempt",
        "",
    ),
    "messages of a refused finish": (
        1,
        commit,
        "jobs_finish_if_held",
        "(m.workflow_id IN (SELECT held.id FROM held))",
        "(true)",
    ),
    "a failure that is ready at once": (1, commit, "jobs_fail_if_held", "due = held.delay <= 0", "due = true"),
    "attempts that aren't counted at claim": (1, claim, "jobs_claim", "attempt = j.attempt + 1", "attempt = 1"),
    "a claim of what is held": (1, claim, "jobs_claim", "j.id > q.mark AND j.owner IS NULL AND", "j.id > q.mark AND"),
    "a put-back that burns the attempt": (
        1,
        commit,
        "jobs_put_back",
        ", attempt = j.attempt - 1, released",
        ", released",
    ),
    "a put-back that isn't counted": (1, commit, "jobs_put_back", "released = j.released + 1", "released = j.released"),
    "a put-back that is always free": (4, commit, "jobs_put_back", "due = held.delay <= 0", "due = true"),
    "a retry with another idempotency key": (
        6,
        dead,
        "job_retry",
        "SELECT outbox.retry(%(pipeline)s, %(entity)s, %(by)s, %(reason)s)",
        "WITH dead AS (DELETE FROM outbox.dead_jobs AS d "
        "WHERE d.pipeline = %(pipeline)s AND d.entity_id = %(entity)s RETURNING d.*), "
        "made AS (INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered) "
        "SELECT d.workflow_id, d.pipeline, d.stage, d.status, d.entered + 1 FROM dead AS d RETURNING 1) "
        "SELECT count(*) > 0 FROM made",
    ),
}
"""Each with a seed that meets it soon, since most need a rare course of events."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_the_engine_is_found(
    world: Callable[[], Lives], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What the comparison is worth: each of these differs from the engine in one condition."""
    found_by, module, statement, text, instead = MUTANTS[name]
    assert text.encode() in module.SQL[statement]
    changed = module.SQL[statement].replace(text.encode(), instead.encode())
    monkeypatch.setattr(module, "SQL", {**module.SQL, statement: changed})
    quick = settings(
        PROFILE, max_examples=1_000, derandomize=False, phases=[Phase.generate], report_multiple_bugs=False
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(seed(found_by)(lambda: world()), settings=quick)
