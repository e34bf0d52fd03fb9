"""Random deploys, answers, signals, changes, deadlines, cancellations and steps: all is as a plain model says.

`MODEL_EXAMPLES=2000` looks for longer, at random; without it the same few examples run each time. A failure prints the
shortest life that shows it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pytest_postgresql.executors import NoopExecutor

from kit.databases import clone
from kit.pipelines import Post
from kit.scenes import MAINTENANCE, WORKER, books_are_right
from kit.servers import PostgresServer
from kit.waits import HOUR
from outbox import Pipeline, Stranded, WaitForApproval, WaitForSignal, decide, signal
from outbox.definition import deploy, rename, stranded
from outbox.engine import claim, commit
from outbox.engine.apart import ALL
from outbox.engine.job import Finished
from outbox.engine.lane import Lane

Conn = psycopg.Connection[Any]
FINAL = frozenset({"DONE", "REFUSED", "LATE", "CANCELLED"})


@dataclass(frozen=True)
class Version:
    """A version of the pipeline: NEW -> WAITING -> GOOD -> DONE, and what is different in it. Roles are statuses' first names."""

    names: dict[str, str] = field(default_factory=dict)
    judged: bool = False  # a stage takes WAITING
    narrow: bool = False  # nothing in WAITING can be refused
    sent: bool = True  # a stage takes GOOD
    timed: bool = True  # GOOD has a deadline

    def name(self, role: str) -> str:
        return self.names.get(role, role)

    def stage(self, role: str) -> str | None:
        return {"NEW": "ask", "WAITING": "judge" if self.judged else None, "GOOD": "send" if self.sent else None}.get(
            role
        )

    def legal(self) -> set[tuple[str, str]]:
        refused = set() if self.narrow else {("WAITING", "REFUSED")}
        timed = {("GOOD", "LATE")} if self.timed else set()
        cancelled = {(role, "CANCELLED") for role in ("NEW", "WAITING", "GOOD")}
        lead = {("NEW", "WAITING"), ("WAITING", "GOOD"), ("WAITING", "LATE"), ("GOOD", "DONE")}
        return lead | refused | timed | cancelled

    def pipeline(self) -> Pipeline[Any]:
        name = self.name
        final = {name(role) for role in FINAL - {"CANCELLED"}}
        made: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final=final, cancelled="CANCELLED")
        for role in ("NEW", "WAITING", "GOOD"):
            targets = {name(to) for source, to in self.legal() if source == role and to != "CANCELLED"}
            if stage := self.stage(role):
                made.stage(stage, on=name(role), to=targets)(lambda run: None)
            else:
                made.allow(name(role), to=targets)
        if self.timed:
            made.deadline(name("GOOD"), hours=1, to=name("LATE"))
        for other in {*VERSIONS.values()} if VERSIONS else ():
            for role in ("WAITING", "GOOD", "LATE"):
                if other.name(role) != name(role) and other.name(role) not in made.renames:
                    made.rename(other.name(role), name(role))
        return made

    def __hash__(self) -> int:
        return id(self)


VERSIONS: dict[str, Version] = {}
VERSIONS |= {
    "first": Version(),
    "renamed": Version({"WAITING": "REVIEW", "GOOD": "FINE", "LATE": "EXPIRED"}),
    "judged": Version(judged=True),
    "judged and renamed": Version({"WAITING": "REVIEW"}, judged=True),
    "narrow": Version(narrow=True),
    "unsent": Version(sent=False),
    "untimed and renamed": Version({"GOOD": "FINE"}, timed=False),
    "unsent and untimed": Version(sent=False, timed=False),
}
PIPELINES = {name: version.pipeline() for name, version in VERSIONS.items()}


@dataclass
class Workflow:
    """What the model knows: the wait is "signal" or a question's answers with where they lead."""

    role: str = "NEW"
    wait: str | dict[str, str] | None = None
    deadline: int | None = None  # each running deadline has a number of its own; it leads to LATE
    kept: int = 0  # signals that nobody has waited for


entities = st.sampled_from("abcd")
roles = st.sampled_from(["WAITING", "GOOD", "DONE", "REFUSED", "LATE"])
waits = st.sampled_from(["question", "question with a deadline", "signal", "nothing"])


class Lives(RuleBasedStateMachine):
    """Does everything twice, to the engine and to the model."""

    def __init__(self, conn: Conn) -> None:
        super().__init__()
        self.conn = conn
        self.name = "first"
        self.workflows: dict[str, Workflow] = {}
        self.deadlines = 0
        self.until: dict[int, Any] = {}
        conn.execute("DELETE FROM outbox.workflow_states")
        conn.execute("DELETE FROM outbox.workers")
        conn.execute("DELETE FROM outbox.pipelines")
        deploy.deploy(conn, PIPELINES["first"])
        row = conn.execute(
            WORKER["worker_register"], {"name": "t", "stages": [], "lease": 3600, "release": None}
        ).fetchone()
        assert row is not None
        self.worker = int(row[0])

    @property
    def version(self) -> Version:
        return VERSIONS[self.name]

    def move(self, workflow: Workflow, role: str) -> None:
        workflow.role, workflow.wait, workflow.deadline = role, None, None
        if role == "GOOD" and self.version.timed:
            self.start_deadline(workflow)

    def start_deadline(self, workflow: Workflow) -> None:
        self.deadlines += 1
        workflow.deadline = self.deadlines

    @initialize(kinds=st.permutations(["question", "question with a deadline", "signal", "good"]))
    def begin(self, kinds: list[str]) -> None:
        """One of each kind waits, and one is on its way."""
        for entity, kind in zip("abcd", kinds, strict=True):
            self.submit(entity)
            self.work(kind, False)
            if kind == "good":
                self.change(entity, "GOOD")

    @rule(what=st.one_of(
        st.tuples(st.just("submit"), entities),
        st.tuples(st.just("answer"), entities, st.sampled_from(["yes", "no"])),
        st.tuples(st.just("send"), entities),
        st.tuples(st.just("change"), entities, roles),
        st.tuples(st.just("cancel"), entities),
        st.tuples(st.just("fall_due"), entities),
    ))  # fmt: skip
    def others(self, what: tuple[str, ...]) -> None:
        """People and other systems do something; fewer rules make deploys more frequent."""
        getattr(self, what[0])(*what[1:])

    def submit(self, entity: str) -> None:
        created = PIPELINES[self.name].submit(self.conn, entity, Post()).created
        assert created == (entity not in self.workflows)
        self.workflows.setdefault(entity, Workflow())

    @rule(wait=waits, refused=st.booleans())
    def work(self, wait: str, refused: bool) -> None:
        """A worker takes a job of each stage, and ends it."""
        name, legal = self.version.name, self.version.legal()
        for stage in PIPELINES[self.name].stages.values():
            lane = Lane(stage, 1)
            rows = self.conn.execute(*claim.request(self.worker, [(lane, 1)], 0, careful=True)).fetchall()
            claim.receive(self.worker, {("p", stage.name): lane}, rows)
            for job in lane.waiting:
                workflow = self.workflows[job.entity_id]
                role = {"ask": "WAITING", "judge": "GOOD", "send": "DONE"}[stage.name]
                if stage.name == "judge" and refused:
                    role = "REFUSED"
                told, asked = None, stage.name == "ask" and not self.version.judged
                if ("WAITING", role) not in legal and stage.name == "judge":
                    role = "GOOD"
                options = {"yes": "GOOD"} | ({"no": "REFUSED"} if ("WAITING", "REFUSED") in legal else {})
                self.move(workflow, role)
                if asked and wait.startswith("question"):
                    timed = "deadline" in wait
                    told = WaitForApproval(
                        "?", options={answer: name(to) for answer, to in options.items()},
                        deadline=HOUR if timed else None, on_deadline=name("LATE") if timed else None,
                    ).as_wait()  # fmt: skip
                    workflow.wait = options
                    if timed:
                        self.start_deadline(workflow)
                elif asked and wait == "signal":
                    told = WaitForSignal("go", to=name("GOOD")).as_wait()
                    workflow.wait = "signal"
                done = self.conn.execute(*commit.finish([(job, Finished(name(role), None, [], told))])).fetchall()
                assert len(done) == 1
                if workflow.wait == "signal" and workflow.kept:
                    workflow.kept -= 1
                    self.move(workflow, "GOOD")

    def refusing(self, allowed: bool, act: Callable[[], Any]) -> None:
        refused: psycopg.Error | None = None
        try:
            with self.conn.transaction():
                act()
        except psycopg.Error as error:
            refused = error
        assert (refused is None) == allowed, f"the model {'allows' if allowed else 'refuses'} it: {refused}"
        assert refused is None or (refused.sqlstate or "").startswith("OB")

    def answer(self, entity: str, answer: str) -> None:
        workflow = self.workflows.get(entity, Workflow())
        options = workflow.wait if isinstance(workflow.wait, dict) else {}
        # Each answer is somebody else's, so that none is a repetition.
        self.deadlines += 1
        by = f"person {self.deadlines}"
        self.refusing(answer in options, lambda: decide(self.conn, "p", entity, answer, by=by))
        if answer in options:
            self.move(workflow, options[answer])

    def send(self, entity: str) -> None:
        workflow = self.workflows.get(entity)
        self.refusing(workflow is not None, lambda: signal(self.conn, "p", entity, "go"))
        if workflow is not None:
            if workflow.wait == "signal":
                self.move(workflow, "GOOD")
            else:
                workflow.kept += 1

    def change(self, entity: str, role: str) -> None:
        workflow = self.workflows.get(entity)
        if workflow is None or workflow.role == role:
            return
        allowed = (workflow.role, role) in self.version.legal()
        update = "UPDATE outbox.workflow_states SET current_status = %s WHERE entity_id = %s"
        self.refusing(allowed, lambda: self.conn.execute(update, [self.version.name(role), entity]))
        if allowed:
            self.move(workflow, role)

    def cancel(self, entity: str) -> None:
        workflow = self.workflows.get(entity)
        allowed = workflow is not None and workflow.role not in FINAL - {"CANCELLED"}
        self.refusing(allowed, lambda: PIPELINES[self.name].cancel(self.conn, entity))
        if workflow is not None and allowed:
            self.move(workflow, "CANCELLED")

    def fall_due(self, entity: str) -> None:
        workflow = self.workflows.get(entity)
        due = self.conn.execute(
            "UPDATE outbox.jobs AS j SET deadline = now() - interval '1 second' FROM outbox.workflow_states AS w "
            "WHERE w.id = j.workflow_id AND w.entity_id = %s AND j.deadline IS NOT NULL",
            [entity],
        ).rowcount
        assert due == (workflow is not None and workflow.deadline is not None)
        self.conn.execute(MAINTENANCE["deadlines_fire"], {"limit": 10, "now": None, **ALL})
        if workflow is not None and due:
            self.move(workflow, "LATE")

    @rule(name=st.sampled_from(sorted(VERSIONS)), end_waits=st.booleans())
    def deploy(self, name: str, end_waits: bool) -> None:
        old, new = self.version, VERSIONS[name]
        lost = old.legal() - new.legal()
        here = self.workflows.values()
        cut = any(w.wait and not old.stage(w.role) and new.stage(w.role) for w in here)
        stuck = any(
            (w.deadline and (w.role, "LATE") in lost)
            or (
                isinstance(w.wait, dict)
                and not new.stage(w.role)
                and any((w.role, to) in lost for to in w.wait.values())
            )
            for w in here
        )
        refused: Stranded | None = None
        try:
            deploy.deploy(self.conn, PIPELINES[name], end_waits=end_waits)
        except Stranded as error:
            refused = error
        assert (refused is not None) == (stuck or (cut and not end_waits)), f"the model disagrees: {refused}"
        if refused:
            return
        self.name = name
        for workflow in here:
            before, after = old.stage(workflow.role), new.stage(workflow.role)
            if after is not None and before != after:
                workflow.wait = None
                if before is None and workflow.deadline is None and workflow.role == "GOOD" and new.timed:
                    self.start_deadline(workflow)

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        books_are_right(self.conn)
        name = self.version.name
        rows = self.conn.execute(LOOK).fetchall()
        found = {entity: tuple(rest[:6]) for entity, *rest in rows}
        promised = {}
        for entity, workflow in self.workflows.items():
            asked = workflow.wait if isinstance(workflow.wait, dict) else None
            stage = self.version.stage(workflow.role)
            has_job = stage is not None or workflow.deadline is not None
            promised[entity] = (
                name(workflow.role),
                (stage or "-") if has_job else None,
                name("LATE") if workflow.deadline else None,
                {answer: name(to) for answer, to in asked.items()} if asked else None,
                name("GOOD") if workflow.wait == "signal" else None,
                workflow.kept,
            )
        assert found == promised
        for entity, *_, until in rows:
            number = self.workflows[entity].deadline
            if number is not None:
                assert self.until.setdefault(number, until) == until, "a deadline that runs stays when it was"


LOOK = """
SELECT w.entity_id, w.current_status, CASE WHEN j.id IS NOT NULL THEN coalesce(j.stage, '-') END, j.on_deadline, a.options,
       wait.to_status, (SELECT count(*) FROM outbox.signals AS s WHERE s.workflow_id = w.id AND s.taken_at IS NULL), j.deadline
FROM outbox.workflow_states AS w
LEFT JOIN outbox.jobs AS j ON j.workflow_id = w.id
LEFT JOIN outbox.approvals AS a ON a.workflow_id = w.id AND a.ended_at IS NULL
LEFT JOIN outbox.waits AS wait ON wait.workflow_id = w.id
"""


@pytest.fixture(scope="module")
def world(server: PostgresServer, template: NoopExecutor) -> Iterator[Callable[[], Lives]]:
    with clone(template, "deploys") as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        yield lambda: Lives(conn)


EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "0"))
PROFILE = settings(
    max_examples=EXAMPLES or 10,
    stateful_step_count=12,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def test_whatever_is_deployed_what_waits_is_as_the_model_says(world: Callable[[], Lives]) -> None:
    run_state_machine_as_test(world, settings=PROFILE)


MUTANTS = {
    "a rename that loses a deadline": (rename, "deadlines_rename", "j.deadline IS NOT NULL AND", "false AND"),
    "a stage taken away with its deadlines": (
        deploy,
        "jobs_reroute",
        "(r.stage IS NOT NULL OR j.deadline IS NOT NULL)",
        "r.stage IS NOT NULL",
    ),
    "a take-over that leaves the question open": (deploy, "questions_end", "a.ended_at IS NULL", "false"),
    "a rename that forgets the answers": (rename, "questions_rename", "a.ended_at IS NULL", "false"),
    "a rename that forgets the signal": (rename, "waits_rename", "w.to_status = ANY", "false AND w.to_status = ANY"),
    "a take-over that leaves the wait": (deploy, "waits_end", "s.id = w.workflow_id", "false AND s.id = w.workflow_id"),
    "a deploy that asks nobody": (stranded, "waits_in_statuses", "w.kind NOT IN", "w.kind IN"),
    "a change that is taken away without a word": (stranded, "waits_for_changes", "w.pipeline = ", "'' = "),
}


@pytest.mark.parametrize("name", list(MUTANTS)[: None if EXAMPLES else 3])
def test_a_mutant_of_the_deploy_is_found(
    world: Callable[[], Lives], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What the comparison is worth: each of these differs from the deploy in one condition. CI looks at some of them."""
    module, statement, text, instead = MUTANTS[name]
    assert text.encode() in module.SQL[statement]
    changed = module.SQL[statement].replace(text.encode(), instead.encode())
    monkeypatch.setattr(module, "SQL", {**module.SQL, statement: changed})
    quick = settings(PROFILE, max_examples=60, derandomize=False, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, psycopg.Error)):
        run_state_machine_as_test(seed(1)(lambda: world()), settings=quick)
