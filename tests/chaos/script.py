"""Builds histories by hand: a good engine in a page writes what the real one would, and is then told to do wrong.

Each method is one or several committed transactions. `end` derives from them what all other witnesses would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

from .bank import receipt
from .effects import key_of
from .history import (  # fmt: skip
    Arrival,
    Call,
    Change,
    DeadJob,
    Effect,
    Entry,
    History,
    Job,
    Known,
    Rules,
    Stage,
    Transaction,
    Workflow,
    Write,
)
from .replay import seconds

STATUSES = (
    "NEW",
    "CHECKING",
    "CHECKED",
    "APPROVED",
    "SHIPPED",
    "UNPAID",
    "REVIEW",
    "CALLED",
    "FAMILY",
)  # all but the final ones
RULES = Rules(
    initial="NEW",
    final=frozenset({"DONE", "PAID", "REJECTED", "CANCELLED", "EXPIRED"}),
    stages=(
        Stage("check", "NEW", frozenset({"CHECKED"}), 3, "outside", "CHECKING", (0.2, 0.4)),
        Stage(
            "decide", "CHECKED", frozenset({"REVIEW", "CALLED", "FAMILY", "APPROVED", "UNPAID"}), 3, most=2, most_each=1
        ),
        Stage("act", "APPROVED", frozenset({"SHIPPED"}), 3, "inside"),
        Stage("notify", "SHIPPED", frozenset({"DONE"}), 2, rejects=True),
        Stage("charge", "UNPAID", frozenset({"PAID"}), 3, "ledger"),
    ),
    by_hand=frozenset(
        {("REVIEW", "APPROVED"), ("REVIEW", "REJECTED"), ("CALLED", "APPROVED"), ("FAMILY", "APPROVED")}
        | {(status, "CANCELLED") for status in STATUSES}
    ),
    asking=frozenset({"REVIEW"}),
    called=frozenset({"CALLED"}),
    joining=frozenset({"FAMILY"}),
    timed=frozenset((status, "EXPIRED") for status in ("REVIEW", "CALLED", "FAMILY")),
    cancelled="CANCELLED",
    renamed={"IN_REVIEW": "REVIEW", "LATE": "EXPIRED"},
    repeated=frozenset({"charge-repeat"}),
)
WAITS = ("REVIEW", "CALLED", "FAMILY")
TAKES = {status: stage for stage in RULES.stages for status in (stage.on, stage.running) if status}
BEGAN = 1_000.0


class Script:
    """A run in the making. A second passes with each transaction."""

    def __init__(self) -> None:
        self.transactions: list[Transaction] = []
        self.calls: list[Call] = []
        self.states: dict[str, dict[str, Any]] = {}
        self.submitted: dict[str, str] = {}  # by whom
        self.jobs: dict[str, dict[str, Any]] = {}
        self.dead: dict[str, dict[str, Any]] = {}
        self.messages = 0
        self.not_consumed: set[str] = set()
        self.waits: set[str] = set()  # who waits for a signal or for children
        self.children: dict[str, list[str]] = {}  # by parent
        self.ledger: dict[str, dict[str, Any]] = {}  # the last effect of each workflow
        self.asked: dict[str, dict[str, Any]] = {}  # the open question about it
        self.book: list[Entry] = []
        for worker in (1, 2):
            self.commit(write("workers", "insert", id=worker))

    # Transactions, as a good engine makes them.

    def commit(self, *writes: Write) -> None:
        number = len(self.transactions)
        self.transactions.append(Transaction(number, number, BEGAN + number, writes))

    @property
    def now(self) -> str:
        return moment(BEGAN + len(self.transactions))

    def call(self, kind: Any, entity: str, to: str | None, outcome: Any, said: str) -> str:
        """Records a call; its name is its actor."""
        name, at = f"k1/{len(self.calls) + 1}", BEGAN + len(self.transactions)
        self.calls.append(Call(name, kind, entity, outcome, at, at + 0.5, to, said))
        return name

    def submit(self, id_: str, outcome: str = "ok") -> None:
        entity = f"entity of {id_}"
        actor = self.call("submit", entity, None, outcome, "created")
        self.states[id_] = {"id": id_, "entity_id": entity, "current_status": "NEW", "version": 1}
        self.submitted[id_] = actor
        self.commit(
            write("workflow_states", "insert", **self.states[id_]),
            told(id_, None, "NEW", 1, actor),
            self.job(id_, "NEW", 1),
            self.message(id_),
        )

    def claim(self, id_: str, worker: int = 1) -> None:
        job = self.jobs[id_]
        self.put(id_, owner=worker, attempt=job["attempt"] + 1, claimed_at=self.now)

    def start(self, id_: str) -> None:
        """Moves a workflow to the in-progress status of the stage whose job is held."""
        job = self.jobs[id_]
        stage = TAKES[job["status"]]
        assert stage.running
        before, version = self.move(id_, stage.running)
        job["status"] = stage.running
        self.commit(
            write("workflow_states", "update", **self.states[id_]),
            write("jobs", "update", **job),
            told(id_, before, stage.running, version, f"worker-{job['owner']}", job),
        )

    def outside(self, id_: str) -> None:
        job = self.jobs[id_]
        key = f"{id_}:{job['stage']}:{job['entered']}"
        self.commit(
            write(
                "outside", "insert", workflow_id=id_, stage=job["stage"], attempt=job["attempt"], key=key, at=self.now
            )
        )

    def intend(self, id_: str, name: str = "charge-ask") -> None:
        """Writes that a call will be made, for the first time or again."""
        job, old = self.jobs[id_], self.ledger.get(id_)
        self.ledger[id_] = {
            "workflow_id": id_, "entered": job["entered"], "name": name, "call": f"c{len(self.transactions)}", "attempt": job["attempt"],
            "state": "started", "result": None, "error": None, "known_by": None,
        }  # fmt: skip
        self.commit(write("effects", "update" if old else "insert", **self.ledger[id_]))

    def bank(self, id_: str, *what: Any) -> None:
        """Has the bank write lines of an effect into its book: charge, refuse, look, view."""
        for each in what:
            self.book.append(
                Entry(each, key_of(texts(self.ledger[id_])), "somebody", BEGAN + len(self.transactions) - 0.5)
            )

    def note(self, id_: str, state: str, known_by: str = "call") -> None:
        """Writes what has come of a call."""
        self.commit(self.known(id_, state, known_by))

    def known(self, id_: str, state: str, known_by: str | None) -> Write:
        row = self.ledger[id_]
        result = f'"{receipt(key_of(texts(row)))}"' if state == "done" else None
        row.update(state=state, known_by=known_by, result=result)
        return write("effects", "update", **row)

    def ask(self, id_: str) -> None:
        """Parks a job, and asks what has become of its call."""
        job, row = self.jobs[id_], self.ledger[id_]
        job.update(owner=None, claimed_at=None, attempt=job["attempt"] - 1, due=None, run_at=self.now)
        question = f"{id_}/{len(self.transactions)}"
        self.asked[id_] = {"id": question, "workflow_id": id_, "status": job["status"], "effect": row["call"]}
        self.commit(
            write("jobs", "update", **job),
            write("approvals", "insert", **self.asked[id_], ended=None, asked_by=self.submitted[id_]),
            self.known(id_, "started", None),
        )

    def answer(self, id_: str, decision: str, outcome: str = "ok", *, by: str | None = None) -> None:
        """Answers the question about an effect, which has its job run again."""
        actor = by or self.call("voice", self.states[id_]["entity_id"], None, outcome, "counted")
        ended = {"ended": "decided", "decision": decision, "decided_by": actor, "edited": None}
        self.jobs[id_].update(due=True, run_at=self.now)
        self.commit(
            write("approvals", "update", **self.asked.pop(id_), **ended),
            self.known(id_, "done" if decision == "yes" else "not done", actor),
            write("jobs", "update", **self.jobs[id_]),
        )

    def pay(self, id_: str, name: str = "charge-ask") -> None:
        """Makes an effect, as it is without a fault."""
        self.intend(id_, name)
        self.bank(id_, "charge")
        self.note(id_, "done")

    def finish(self, id_: str, to: str) -> None:
        job = self.jobs[id_]
        writes = [self.inside(id_)] if TAKES[job["status"]].effect == "inside" else []
        self.change(id_, to, f"worker-{job['owner']}", job, writes)

    def hand(self, id_: str, to: str, outcome: str = "ok") -> None:
        actor = self.call("change", self.states[id_]["entity_id"], to, outcome, f"to {to}")
        self.change(id_, to, actor, None, [])

    def cancel(self, id_: str, outcome: str = "ok") -> None:
        """Cancels a workflow, whatever it is at. No message is sent with it."""
        actor = self.call("cancel", self.states[id_]["entity_id"], "CANCELLED", outcome, "cancelled")
        self.change(id_, "CANCELLED", actor, None, [])
        self.drop("messages")

    def signal(self, id_: str, outcome: str = "ok") -> None:
        """Sends a signal, which moves what waits for it."""
        actor = self.call("signal", self.states[id_]["entity_id"], None, outcome, "sent")
        sent = {"id": len(self.calls), "workflow_id": id_, "sent_by": actor}
        writes = [write("signals", "insert", **sent, taken_at=None)]
        if self.states[id_]["current_status"] != "CALLED":
            self.commit(*writes)
            return
        writes.append(write("signals", "update", **sent, taken_at=self.now))
        self.change(id_, "APPROVED", actor, None, writes)
        self.drop("messages")
        self.rewrite("state_changes", reason="signal go")

    def spawn(self, id_: str, *children: str) -> None:
        """Ends the attempt that waits for children, and starts them."""
        job = self.jobs[id_]
        worker, writes = f"worker-{job['owner']}", []
        self.children[id_] = list(children)
        for child in children:
            self.states[child] = {"id": child, "entity_id": f"entity of {child}", "current_status": "NEW", "version": 1}
            self.submitted[child] = worker
            writes += [
                write("workflow_states", "insert", **self.states[child]),
                told(child, None, "NEW", 1, worker),
                self.job(child, "NEW", 1),
                self.child(child, id_, None, "insert"),
            ]
        self.change(id_, "FAMILY", worker, job, writes)

    def join(self, id_: str, actor: str = "worker-1") -> None:
        """Moves a parent whose children have ended."""
        self.change(id_, "APPROVED", actor, None, [])
        self.drop("messages")
        self.rewrite("state_changes", reason="its children have ended")

    def orphan(self, id_: str) -> None:
        """Cancels a child whose parent was cancelled."""
        self.change(id_, "CANCELLED", "outbox", None, [])
        self.drop("messages")
        self.rewrite("state_changes", reason="its parent has ended")

    def rename(self, *ids: str) -> None:
        """Deploys a version that calls two statuses otherwise, and renames these workflows, which wait in one of them."""
        self.commit(*self.named(), *(each for id_ in ids for each in self.renamed(id_)))

    def named(self) -> Iterator[Write]:
        for old, new in (("REVIEW", "IN_REVIEW"), ("EXPIRED", "LATE")):
            yield write("routes", "delete", status=old)
            yield write("routes", "insert", status=new)

    def renamed(self, id_: str) -> Iterator[Write]:
        before, version = self.move(id_, "IN_REVIEW")
        self.jobs[id_].update(status="IN_REVIEW", on_deadline="LATE")
        yield write("workflow_states", "update", **self.states[id_])
        yield write("jobs", "update", **self.jobs[id_])
        asked = {"options": '{"reject": "REJECTED"}', "ended": None}
        yield write("approvals", "update", id=id_, workflow_id=id_, status="IN_REVIEW", **asked)
        history = told(id_, before, "IN_REVIEW", version, "outbox_owner")
        yield Write(history.table, history.kind, {**history.row, "reason": "renamed"})

    def vote(self, id_: str, *, outcome: str = "ok") -> str:
        """Votes for "reject", which two people must; the vote moves nothing."""
        person = self.call("voice", self.states[id_]["entity_id"], "REJECTED", outcome, "counted")
        self.commit(self.voted(id_, person))
        return person

    def voted(self, id_: str, person: str) -> Write:
        return write(
            "approval_votes",
            "insert",
            approval_id=id_,
            person=person,
            cast_by=person,
            option="reject",
            voted_at=self.now,
        )

    def vote_in_place(self, id_: str, *, seconds: float = 60, end: bool = False) -> None:
        """Votes in the place of another, who has delegated for so many seconds, or has ended that."""
        voter = f"k1/{len(self.calls) + (3 if end else 2)}"
        person = self.delegate(voter, moment(BEGAN + len(self.transactions) + seconds))
        if end:
            self.end_delegation(voter, person)
        assert self.vote(id_) == voter
        self.rewrite("approval_votes", person=person)

    def delegate(self, to: str, until: str) -> str:
        """Lets somebody vote in the place of the one whose name it returns."""
        person = self.call("delegate", "", None, "ok", "delegated")
        self.calls[-1] = replace(self.calls[-1], entity=person)
        self.commit(write("delegations", "insert", to_person=to, from_person=person, until=until))
        return person

    def end_delegation(self, to: str, person: str) -> None:
        self.call("end", person, None, "ok", "ended")
        self.commit(write("delegations", "delete", to_person=to, from_person=person))

    def quorum(self, id_: str) -> None:
        """Rejects with the last vote."""
        self.hand(id_, "REJECTED")
        person = self.calls[-1].client
        self.rewrite("approvals", "update", id=id_, decision="reject", decided_by=person, approvers='{"clients": 2}')
        self._replace(-1, [self.voted(id_, person), *self.transactions[-1].writes])

    def change(self, id_: str, to: str, actor: str, job: dict[str, Any] | None, writes: list[Write]) -> None:
        """Does what an UPDATE of a status and its trigger do."""
        before, version = self.move(id_, to)
        writes += [write("workflow_states", "update", **self.states[id_]), self.message(id_)]
        if self.jobs.pop(id_, None):
            writes.append(write("jobs", "delete", workflow_id=id_))
        if self.dead.pop(id_, None):
            writes.append(write("dead_jobs", "delete", workflow_id=id_))
        writes.append(told(id_, before, to, version, actor, job))
        writes += self.wait_ends(id_, before, to, actor)
        if to in TAKES:
            writes.append(self.job(id_, to, version))
        elif to in WAITS:
            writes += self.wait_begins(id_, to, version)
        self.commit(*writes)

    def wait_ends(self, id_: str, before: str, to: str, actor: str) -> Iterator[Write]:
        """Yields what is written when a workflow leaves a status in which it may have waited."""
        if before in ("REVIEW", "IN_REVIEW"):
            ended = "deadline" if actor == "outbox" else "decided"
            row = {"id": id_, "workflow_id": id_, "status": before, "to_status": to, "ended": ended, "edited": None}
            yield write("approvals", "update", **row)
        if id_ in self.asked:
            yield write("approvals", "update", **self.asked.pop(id_), ended="withdrawn", edited=None)
        if id_ in self.waits:
            self.waits.remove(id_)
            yield write("waits", "delete", workflow_id=id_)
        if to == "CANCELLED":
            yield from (self.child(each, id_, "CANCELLED") for each in self.children.get(id_, ()))

    def wait_begins(self, id_: str, status: str, version: int) -> Iterator[Write]:
        """Yields what is written when a workflow comes to a status in which it waits."""
        if status == "REVIEW":
            asked = {"options": '{"reject": "REJECTED"}', "ended": None, "asked_by": self.submitted[id_]}
            yield write("approvals", "insert", id=id_, workflow_id=id_, status=status, **asked)
        else:
            self.waits.add(id_)
            yield write("waits", "insert", workflow_id=id_, to_status="APPROVED")
        yield self.timeout(id_, status, version)

    def child(self, id_: str, parent: str, cancel_to: str | None, kind: Any = "update") -> Write:
        return write("children", kind, child_id=id_, parent_id=parent, cancel_to=cancel_to)

    def timeout(self, id_: str, status: str, version: int) -> Write:
        """Returns the job of a wait: it has no stage, and is due later than any script ends."""
        deadline = moment(BEGAN + len(self.transactions) + 1_000)
        self.jobs[id_] = {
            "workflow_id": id_, "stage": None, "status": status, "entered": version, "run_at": deadline, "claimed_at": None,
            "owner": None, "attempt": 0, "due": False, "error": None, "deadline": deadline, "on_deadline": "EXPIRED",
        }  # fmt: skip
        return write("jobs", "insert", **self.jobs[id_])

    def expire(self, id_: str) -> None:
        """Lets the deadline pass without an answer."""
        self.put(id_, deadline=self.now)
        self.change(id_, "EXPIRED", "outbox", None, [])
        self.drop("messages")

    def fail(self, id_: str) -> None:
        """Lets an attempt fail, wait, and be made ready again."""
        self.put(id_, owner=None, claimed_at=None, due=False, run_at=moment(BEGAN + len(self.transactions) + 0.5))
        self.promote(id_)

    def promote(self, id_: str) -> None:
        self.put(id_, due=True)

    def give_back(self, id_: str) -> None:
        self.put(id_, owner=None, claimed_at=None, attempt=self.jobs[id_]["attempt"] - 1)

    def put_back(self, id_: str, released: int, *, waits: bool = True) -> None:
        """An attempt comes to nothing through no fault of its handler: for the first time at once, and then later."""
        later = waits and released > 1
        run_at = moment(BEGAN + len(self.transactions) + 0.5) if later else self.now
        attempt = self.jobs[id_]["attempt"] - 1
        self.put(id_, owner=None, claimed_at=None, attempt=attempt, released=released, due=not later, run_at=run_at)
        if later:
            self.promote(id_)

    def sweep(self, id_: str) -> None:
        self.put(id_, owner=None, claimed_at=None, error="its worker was lost")

    def die(self, id_: str) -> None:
        job = self.jobs.pop(id_)
        self.dead[id_] = {
            "workflow_id": id_, "stage": job["stage"], "status": job["status"], "entered": job["entered"],
            "attempts": job["attempt"], "error": "rejected",
        }  # fmt: skip
        self.commit(write("jobs", "delete", workflow_id=id_), write("dead_jobs", "insert", **self.dead[id_]))

    def make_anew(self, id_: str, outcome: str = "ok") -> None:
        self.call("retry", self.states[id_]["entity_id"], None, outcome, "made again")
        dead = self.dead.pop(id_)
        self.commit(write("dead_jobs", "delete", workflow_id=id_), self.job(id_, dead["status"], dead["entered"]))

    def put(self, id_: str, **columns: Any) -> None:
        """Writes to a job."""
        self.jobs[id_].update(columns)
        self.commit(write("jobs", "update", **self.jobs[id_]))

    def through(self, id_: str, *path: str) -> None:
        """Submits a workflow, and moves it through these statuses by workers, each in one attempt."""
        self.submit(id_)
        for to in path:
            self.claim(id_)
            if TAKES[self.states[id_]["current_status"]].running:
                self.start(id_)
                self.outside(id_)
            if to == "PAID":
                self.pay(id_)
            self.finish(id_, to)

    # What they write.

    def move(self, id_: str, to: str) -> tuple[str, int]:
        state = self.states[id_]
        before = state["current_status"]
        state.update(current_status=to, version=state["version"] + 1)
        return before, state["version"]

    def job(self, id_: str, status: str, version: int) -> Write:
        self.jobs[id_] = {
            "workflow_id": id_, "stage": TAKES[status].name, "status": status, "entered": version, "run_at": self.now,
            "claimed_at": None, "owner": None, "attempt": 0, "due": True, "error": None,
        }  # fmt: skip
        return write("jobs", "insert", **self.jobs[id_])

    def message(self, id_: str) -> Write:
        self.messages += 1
        number = self.messages
        return write(
            "messages", "insert", id=number, message_id=f"m{number}", topic="chaos", key=self.states[id_]["entity_id"],
            payload="{}", workflow_id=id_, xid=len(self.transactions),
        )  # fmt: skip

    def inside(self, id_: str) -> Write:
        job = self.jobs[id_]
        return write("inside", "insert", workflow_id=id_, stage=job["stage"], attempt=job["attempt"], at=self.now)

    def consume(self, message_id: str) -> None:
        self.commit(
            write("inbox", "insert", message_id=message_id),
            write("consumed", "insert", message_id=message_id, at=self.now),
        )

    # What goes wrong.

    def rewrite(self, table: str, kind: str = "insert", **columns: Any) -> None:
        """Makes the last transaction write something else into a table."""
        writes = [
            Write(each.table, each.kind, {**each.row, **texts(columns)})
            if (each.table, each.kind) == (table, kind)
            else each
            for each in self.transactions[-1].writes
        ]
        self._replace(-1, writes)

    def drop(self, table: str, kind: str = "insert", number: int = -1) -> list[Write]:
        """Makes a transaction not write to a table; returns what it would have written."""
        writes = self.transactions[number].writes
        self._replace(number, [each for each in writes if (each.table, each.kind) != (table, kind)])
        return [each for each in writes if (each.table, each.kind) == (table, kind)]

    def tear(self, table: str, kind: str = "insert") -> None:
        """Makes the last transaction write to a table in another transaction, after it."""
        self.commit(*self.drop(table, kind))

    def join_commits(self, count: int) -> None:
        """Makes the last transactions one."""
        joined = [each for transaction in self.transactions[-count:] for each in transaction.writes]
        for number in range(-count, 0):
            self._replace(number, joined if number == -1 else [])

    def _replace(self, number: int, writes: list[Write]) -> None:
        old = self.transactions[number]
        self.transactions[number] = Transaction(old.xid, old.lsn, old.at, tuple(writes))

    # What the other witnesses see of it.

    def end(self) -> History:
        """Relays and consumes what was written, and returns the history with the tables' final contents."""
        written = [each.row for each in self._writes("messages")]
        consumed = {each.row["message_id"] for each in self._writes("consumed")} | self.not_consumed
        for row in written:
            if row["message_id"] not in consumed:
                self.consume(str(row["message_id"]))
        if not any(self._writes("relays")):
            here = len(self.transactions)
            self.commit(
                write("relays", "insert", name="default", window_start=f"{here}:{here}:", window_end=None, position=0)
            )
        ended = BEGAN + len(self.transactions)
        history = History(RULES, strict=True, calls=self.calls, transactions=self.transactions, ended=ended)
        history.changes = [
            Change(
                n, str(row["workflow_id"]), row["from_status"], str(row["to_status"]), int(row["version"] or 0),
                str(row["actor"]), row["stage"], int(row["attempt"]) if row["attempt"] else None, at,
            )
            for n, (row, at) in enumerate(
                (each.row, done.at) for done in self.transactions for each in done.writes if each.table == "state_changes"
            )
        ]  # fmt: skip
        history.workflows = [
            Workflow(id_, str(row["entity_id"]), str(row["current_status"]), int(row["version"] or 0))
            for id_, row in self._remaining("workflow_states", "id").items()
        ]
        history.jobs = [
            Job(n, id_, str(row["stage"]), str(row["status"]), int(row["attempt"] or 0), row["owner"], None)
            for n, (id_, row) in enumerate(self._remaining("jobs", "workflow_id").items())
        ]
        history.dead_jobs = [
            DeadJob(id_, str(row["stage"]), str(row["status"]), int(row["attempts"] or 0), str(row["error"]))
            for id_, row in self._remaining("dead_jobs", "workflow_id").items()
        ]
        kinds: tuple[Literal["outside", "inside"], ...] = ("outside", "inside")
        history.effects = [
            Effect(
                kind,
                row["workflow_id"],
                row["stage"],
                int(row["attempt"] or 0),
                row.get("key"),
                None,
                seconds(row["at"]),
            )
            for kind in kinds
            for row in (each.row for each in self._writes(kind))
        ]
        history.effects += [
            Effect("consumer", None, None, None, None, each.row["message_id"], seconds(each.row["at"]))
            for each in self._writes("consumed")
        ]
        history.arrivals = [
            Arrival(
                str(row["message_id"]),
                f"{row['message_id']}/1",
                str(row["topic"]),
                row["key"],
                {},
                BEGAN + len(self.transactions) + n,
            )
            for n, row in enumerate(written)
        ]
        history.inbox = [str(each.row["message_id"]) for each in self._writes("inbox")]
        history.book = self.book
        effects = {key_of(each.row): each.row for each in self._writes("effects")}
        history.ledger = [
            Known(str(row["workflow_id"]), key, str(row["call"]), str(row["state"])) for key, row in effects.items()
        ]
        history.ended = BEGAN + len(self.transactions)
        return history

    def _writes(self, table: str) -> Iterator[Write]:
        return (each for done in self.transactions for each in done.writes if each.table == table)

    def _remaining(self, table: str, key: str) -> dict[str, dict[str, str | None]]:
        rows: dict[str, dict[str, str | None]] = {}
        for each in self._writes(table):
            if each.kind == "delete":
                rows.pop(str(each.row[key]), None)
            else:
                rows[str(each.row[key])] = each.row
        return rows


def told(id_: str, before: str | None, to: str, version: int, actor: str, job: dict[str, Any] | None = None) -> Write:
    """Returns a row of the history."""
    stage, attempt = (job["stage"], job["attempt"]) if job else (None, None)
    return write(
        "state_changes", "insert", workflow_id=id_, from_status=before, to_status=to, version=version, actor=actor,
        stage=stage, attempt=attempt,
    )  # fmt: skip


def write(table: str, kind: Literal["insert", "update", "delete"], **row: Any) -> Write:
    return Write(table, kind, texts(row))


def texts(row: dict[str, Any]) -> dict[str, str | None]:
    """Returns values as Postgres prints them."""
    return {
        name: None if value is None else {True: "t", False: "f"}[value] if isinstance(value, bool) else str(value)
        for name, value in row.items()
    }


def moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ")
