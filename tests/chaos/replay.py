"""Replays the write-ahead log: what each committed transaction did to workflows and jobs, and whether that is legal.

Transactions come in commit order, which for each row is the order of its locks. So nothing here reads a clock, except
in the two cases in which the clock can only acquit.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from .effects import Ledger
from .history import Call, Rules, Stage, Transaction

Row = dict[str, str | None]
Find = Callable[[str, str, str], None]
WORKER = "worker-"
KEPT = ("stage", "owner", "attempt", "entered", "run_at", "due", "deadline")
"""What a job keeps when its status is renamed."""

CLOCK = "outbox"
"""The actor that moves on what has waited too long."""

RENAMED, SIGNAL, JOINED, ORPHANED = "renamed", "signal ", "its children have ended", "its parent has ended"
"""The reasons of changes that the engine makes, besides those of workers and of the clock. SIGNAL goes on with a name."""

SLACK = 0.001  # seconds: Postgres rounds


@dataclass(slots=True)
class Flow:
    """A workflow as the transactions so far have left it. `job` and `dead` are its rows, if there are any."""

    entity: str | None = None
    status: str | None = None
    version: int = 0
    job: Row | None = None
    dead: Row | None = None
    wait: Row | None = None  # for a signal or for children
    questions: dict[str | None, Row] = field(default_factory=dict)  # those that are open
    children: dict[str, Row] = field(default_factory=dict)
    parent: str | None = None
    left_children: bool = False  # it was cancelled while it waited for them
    made_again: int = 0
    without_job: str | None = None  # the status that it came to without the job of its stage

    @property
    def has_effect_asked(self) -> bool:
        """Whether people are asked what has become of a call: its job is parked."""
        return any(question.get("effect") for question in self.questions.values())


@dataclass(slots=True)
class Part:
    """What one transaction did to one workflow. `job` is the one that existed before it."""

    job: Row | None
    moves: list[tuple[str | None, str, int]] = field(default_factory=list)  # from, to, version
    told: list[Row] = field(default_factory=list)  # history
    made: Row | None = None
    ended: Row | None = None
    died: Row | None = None
    undied: bool = False
    messages: list[str] = field(default_factory=list)
    inside: list[Row] = field(default_factory=list)
    asked: list[Row] = field(default_factory=list)  # questions to people; `answered` are those that have ended
    answered: list[Row] = field(default_factory=list)
    heard: int = 0  # signals that were taken


class Replay:
    """Runs through the log, and reports each anomaly to `find`: its name, the workflow or message, and why."""

    def __init__(self, rules: Rules, calls: dict[str, Call], find: Find) -> None:
        self.rules, self.calls, self.find = rules, calls, find
        self.stages: dict[str, Stage] = {stage.name: stage for stage in rules.stages}
        self.takes: dict[str, Stage] = {}  # by status, including in-progress ones
        for stage in rules.stages:
            self.takes[stage.on] = stage
            if stage.running:
                self.takes[stage.running] = stage
        self.running = {stage.running for stage in rules.stages if stage.running}
        self.timed = {status for status, _ in rules.timed}
        self.waits = rules.called | rules.joining
        self.known = {rules.initial, *rules.final, *self.takes, *self.timed}  # the statuses' names at present
        self.flows: dict[str, Flow] = {}
        self.ledger = Ledger(rules, calls, find)
        self.changes: dict[tuple[str, int], Row] = {}  # history, by workflow and version
        self.told_by: Counter[str] = Counter()  # rows of the history by actor
        self.votes: dict[str | None, dict[str | None, Row]] = defaultdict(dict)  # by question and person
        self.askers: dict[str | None, set[str | None]] = {}  # by question
        self.voices: set[str] = set()  # whose answer was counted
        self.delegations: dict[tuple[str | None, str | None], str] = {}  # their ends, by who votes and who counts
        self.delegators: set[str | None] = set()
        self.ended: set[str | None] = set()  # those who have ended theirs
        self.senders: set[str] = set()  # of signals
        self.kinds: Counter[str] = Counter()  # changes by the reasons above, and cancellations
        self.messages: dict[str, Row] = {}  # in commit order
        self.relays: dict[str, Row] = {}
        self.alive: set[str] = set()
        self.at_work: dict[tuple[str, str | None], set[str]] = defaultdict(set)  # by stage, and by stage and partition
        self._began: dict[tuple[str, str | None], str] = {}
        self._for_nothing: dict[
            str, str
        ] = {}  # by worker, a job whose attempt had begun, and which it gave back uncounted
        self.claims: Counter[tuple[str, str, int]] = Counter()
        self.outside: Counter[tuple[str, str, int]] = Counter()
        self.inside: Counter[tuple[str, str, int]] = Counter()
        self.keys: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.visits: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.consumed: Counter[str] = Counter()
        self.recorded: set[str] = set()  # message ids in the inbox
        self.jobs = self.retried = self.redelivered = self.shared = 0
        # What one transaction lacked and another had too much of, by workflow: paired at the end.
        self._lacks_message: dict[str, list[str]] = defaultdict(list)
        self._extra_message: dict[str, list[str]] = defaultdict(list)
        self._lacks_inside: dict[str, list[str]] = defaultdict(list)
        self._extra_inside: dict[str, list[str]] = defaultdict(list)
        self._done_inside: set[str] = set()
        self._parts: dict[str, Part] = {}
        self._deploying = False  # in this transaction
        self._now_recorded: set[str] = set()
        self._now_consumed: set[str] = set()
        self._at = 0.0
        self._tables: dict[tuple[str, str], Callable[[Row], None]] = {
            ("workflow_states", "insert"): self._started,
            ("workflow_states", "update"): self._moved,
            ("workflow_states", "delete"): self._deleted,
            ("state_changes", "insert"): self._told,
            ("jobs", "insert"): self._job_made,
            ("jobs", "update"): self._job_written,
            ("jobs", "delete"): self._job_ended,
            ("dead_jobs", "insert"): self._died,
            ("dead_jobs", "delete"): self._undied,
            ("messages", "insert"): self._message,
            ("routes", "insert"): lambda row: self._named(self.known.add, row),
            ("routes", "delete"): lambda row: self._named(self.known.discard, row),
            ("waits", "insert"): self._wait_written,
            ("waits", "update"): self._wait_written,
            ("waits", "delete"): self._wait_ended,
            ("signals", "insert"): self._signalled,
            ("signals", "update"): self._signalled,
            ("children", "insert"): self._child,
            ("children", "update"): self._child,
            ("approvals", "insert"): self._asked,
            ("approvals", "update"): self._answered,
            ("effects", "insert"): self._effect,
            ("effects", "update"): self._effect,
            ("effects", "delete"): lambda row: self.find("lost", str(row["workflow_id"]), "its effect was forgotten"),
            ("delegations", "insert"): self._delegated,
            ("delegations", "update"): self._delegated,
            ("delegations", "delete"): self._delegation_ended,
            ("approval_votes", "insert"): self._voted,
            ("approval_votes", "delete"): lambda row: self.votes[row["approval_id"]].pop(row["person"], None),
            ("outside", "insert"): self._outside,
            ("inside", "insert"): self._inside,
            ("inbox", "insert"): self._recorded,
            ("consumed", "insert"): self._consumed,
            ("relays", "insert"): self._relay,
            ("relays", "update"): self._relay,
            ("workers", "insert"): lambda row: self.alive.add(str(row["id"])),
            ("workers", "delete"): lambda row: self.alive.discard(str(row["id"])),
            ("delivery_attempts", "insert"): self._redelivery,
            ("delivery_attempts", "update"): self._redelivery,
        }

    def run(self, transactions: list[Transaction]) -> None:
        tables = self._tables
        for transaction in transactions:
            self._at = transaction.at
            for write in transaction.writes:
                do = tables.get((write.table, write.kind))
                if do is not None:
                    do(write.row)
            if self._parts:
                self.shared += sum(bool(part.inside) for part in self._parts.values()) > 1
                for id_, part in self._parts.items():
                    self._settle(id_, self.flows[id_], part)
                self._parts = {}
            if self._deploying:
                self._settle_names()
            self.ledger.settle()
            if self._now_recorded or self._now_consumed:
                self._settle_inbox()
            if self._began:
                self._count_at_work()
        self._pair()

    # Single writes.

    def _flow(self, id_: str) -> Flow:
        flow = self.flows.get(id_)
        if flow is None:
            self.find("phantom", id_, "it is written to, and no transaction has started it")
            flow = self.flows[id_] = Flow()
        return flow

    def _part(self, id_: str) -> Part:
        part = self._parts.get(id_)
        if part is None:
            part = self._parts[id_] = Part(self._flow(id_).job)
        return part

    def _started(self, row: Row) -> None:
        id_ = str(row["id"])
        if id_ in self.flows:
            self.find("resurrection", id_, "it is started again")
        self.flows[id_] = Flow(row["entity_id"], str(row["current_status"]), int(row["version"] or 0))
        self._part(id_).moves.append((None, str(row["current_status"]), int(row["version"] or 0)))

    def _moved(self, row: Row) -> None:
        id_ = str(row["id"])
        part, flow = self._part(id_), self.flows[id_]
        before, flow.status = flow.status, str(row["current_status"])
        expected, flow.version = flow.version + 1, int(row["version"] or 0)
        if before != flow.status:
            part.moves.append((before, flow.status, flow.version))
        elif flow.version == expected - 1:
            return  # nothing, or something without a version
        if flow.version != expected and before is not None:
            self.find("illegal change", id_, f"from version {expected - 1} to {flow.version}")

    def _deleted(self, row: Row) -> None:
        self.find("lost", str(row["id"]), "the workflow was deleted")

    def _told(self, row: Row) -> None:
        id_, version = str(row["workflow_id"]), int(row["version"] or 0)
        self.changes[id_, version] = row
        if not _is_a_consequence(row):
            self.told_by[str(row["actor"])] += 1
        self._part(id_).told.append(row)

    def _job_made(self, row: Row) -> None:
        id_ = str(row["workflow_id"])
        part, flow = self._part(id_), self.flows[id_]
        self.jobs += 1
        if flow.job is not None:
            self.find("two holders", id_, "it has two jobs")
        part.made = flow.job = row
        self.visits[id_, str(row["stage"])].add(str(row["entered"]))
        if row["attempt"] != "0" or row["owner"] is not None:
            self.find("two holders", id_, f"its job begins with attempt {row['attempt']} of {row['owner']}")

    def _job_ended(self, row: Row) -> None:
        id_ = str(row["workflow_id"])
        part, flow = self._part(id_), self.flows[id_]
        part.ended, flow.job = flow.job, None
        self._works(id_, part.ended, None)

    def _died(self, row: Row) -> None:
        id_ = str(row["workflow_id"])
        part = self._part(id_)
        part.died = self.flows[id_].dead = row

    def _undied(self, row: Row) -> None:
        id_ = str(row["workflow_id"])
        part = self._part(id_)
        part.undied, self.flows[id_].dead = True, None

    def _job_written(self, row: Row) -> None:
        """Handles a job that is claimed, freed, promoted, or kept for an in-progress status."""
        id_ = str(row["workflow_id"])
        flow = self._flow(id_)
        old, flow.job = flow.job, row
        if old is None:
            self.find("phantom", id_, "a job that is not there is written to")
            return
        self._works(id_, old, row)
        was, owner, before, attempt = old["owner"], row["owner"], old["attempt"], row["attempt"]
        if was == owner and before == attempt:
            self._same_holder(id_, old, row)
        elif owner is not None:
            self._claimed(id_, old, row, int(before or 0), int(attempt or 0))
        elif was is None:
            self.find("zombie write", id_, f"its attempt became {attempt} by somebody who did not hold the job")
        elif int(attempt or 0) != int(before or 0) - 1:
            self._freed(id_, old, row, int(before or 0), int(attempt or 0))
        else:
            self._given_back(id_, old, row)

    def _works(self, id_: str, old: Row | None, row: Row | None) -> None:
        """Counts the held jobs of each stage and of each of its partitions."""
        for was in (old, row):
            for partition in (None, was.get("partition")) if was is not None else ():
                key = str(was["stage"]), partition  # type: ignore[index]
                if was is row and row is not None and row["owner"] is not None:
                    self.at_work[key].add(id_)
                    self._began[key] = id_
                else:
                    self.at_work[key].discard(id_)

    def _count_at_work(self) -> None:
        for (name, partition), id_ in self._began.items():
            stage, held = self.stages.get(name), self.at_work[name, partition]
            most = None if stage is None else stage.most if partition is None else stage.most_each
            if most is not None and len(held) > most:
                self.find("too many", id_, f"{len(held)} jobs of {name} are held at once, of {partition or 'all'}")
        self._began.clear()

    def _same_holder(self, id_: str, old: Row, row: Row) -> None:
        made = self._parts[id_].made if id_ in self._parts else None
        if old["status"] != row["status"]:
            self._part(id_)  # kept for an in-progress status, or renamed
        elif old is made:
            self._parts[id_].made = row  # it was made to wait for its time
        elif old["due"] == "f" and row["due"] == "t":
            # The commit came after the moment by which it is judged here. What is too early even by this is too early.
            if self._at < seconds(row["run_at"]) - SLACK:
                self.find("too early", id_, f"attempt {int(row['attempt'] or 0) + 1} is made ready before its time")
        elif old["due"] is None:
            if self.flows[id_].has_effect_asked:
                self.find("too early", id_, "its job is made ready, and a question about its effect is open")
        elif row["owner"] is None and old["run_at"] != row["run_at"]:
            self.find("zombie write", id_, "its job is put back by somebody who did not hold it")

    def _claimed(self, id_: str, old: Row, row: Row, before: int, attempt: int) -> None:
        stage = str(row["stage"])
        self.claims[id_, stage, attempt] += 1
        self.retried += attempt > 1
        who = f"worker {row['owner']}"
        if given := self._for_nothing.pop(str(row["owner"]), None):
            self.find("free put-back", given, f"{who} gave back an attempt that had begun, uncounted, and claims again")
        if old["owner"] is not None:
            self.find("two holders", id_, f"{who} claims {stage}, which worker {old['owner']} holds")
        elif attempt != before + 1:
            self.find("two holders", id_, f"{who} claims attempt {attempt} of {stage} after attempt {before}")
        elif stage in self.stages and attempt > self.stages[stage].attempts:
            self.find("two holders", id_, f"{who} claims attempt {attempt} of {stage}, which has fewer")
        elif old["due"] != "t":
            self.find("too early", id_, f"{who} claims attempt {attempt} of {stage}, which is not due")

    def _given_back(self, id_: str, old: Row, row: Row) -> None:
        """No attempt is counted. If it had begun, the put-back is, and waits, but for the first; or its worker ends."""
        if row["due"] is None:
            self._part(id_)  # it is parked: somebody must be asked in this transaction
        attempt = id_, str(old["stage"]), int(old["attempt"] or 0)
        times = int(row.get("released") or 0)
        if times > int(old.get("released") or 0):
            if times > 1 and row["due"] == "t":
                self.find("too early", id_, f"{old['stage']} is put back for the {times}. time, and is ready at once")
        elif self.outside[attempt] >= self.claims[attempt] > 0:
            self._for_nothing[str(old["owner"])] = id_

    def _freed(self, id_: str, old: Row, row: Row, before: int, attempt: int) -> None:
        """Handles a job that failed and is retried after a delay, or that was swept because its worker is gone."""
        stage = str(old["stage"])
        if attempt != before:
            self.find("two holders", id_, f"attempt {before} of {stage} is put back as attempt {attempt}")
        elif old["run_at"] != row["run_at"]:
            backoff = self.stages[stage].backoff if stage in self.stages else ()
            wait = backoff[attempt - 1] if attempt <= len(backoff) else 0.0
            # It failed after it was claimed. What is too early even by this is too early.
            waits = seconds(row["run_at"]) - seconds(old["claimed_at"])
            if wait and (row["due"] == "t" or waits < wait - SLACK):
                self.find(
                    "too early", id_, f"attempt {attempt + 1} of {stage} is to come {waits:.3f} s after the claim"
                )
        elif old["owner"] in self.alive:
            self.find("two holders", id_, f"{stage} is taken from worker {old['owner']}, which is alive")

    def _message(self, row: Row) -> None:
        found = str(row["message_id"])
        if found in self.messages:
            self.find("phantom", found, "two messages have this id")
        self.messages[found] = row
        if row["workflow_id"] is None:
            self.find("phantom", found, "it belongs to no workflow")
        else:
            self._part(row["workflow_id"]).messages.append(found)

    def _outside(self, row: Row) -> None:
        id_, stage, attempt = str(row["workflow_id"]), str(row["stage"]), int(row["attempt"] or 0)
        self.outside[id_, stage, attempt] += 1
        done, claimed = self.outside[id_, stage, attempt], self.claims[id_, stage, attempt]
        # An attempt that was released because its worker was told to end comes again under the same number.
        if done > claimed:
            why = f"attempt {attempt} of {stage} was claimed {claimed} times and had {done} effects outside"
            self.find("effect twice" if claimed else "phantom", id_, why)
        keys = self.keys[id_, stage]
        keys.add(str(row["key"]))
        if len(keys) > len(self.visits[id_, stage]):
            self.find("effect twice", id_, f"{stage} had another idempotency key in attempt {attempt}: {row['key']}")

    def _inside(self, row: Row) -> None:
        id_ = str(row["workflow_id"])
        self.inside[id_, str(row["stage"]), int(row["attempt"] or 0)] += 1
        self._part(id_).inside.append(row)
        if found := row.get("found"):
            self.find(
                "leftover", id_, f"attempt {row['attempt']} of {row['stage']} found what another has left: {found}"
            )

    def _recorded(self, row: Row) -> None:
        self._now_recorded.add(str(row["message_id"]))
        self.recorded.add(str(row["message_id"]))

    def _consumed(self, row: Row) -> None:
        found = str(row["message_id"])
        self.consumed[found] += 1
        if self.consumed[found] > 1:
            self.find("effect twice", found, f"{self.consumed[found]} effects of its consumer")
        self._now_consumed.add(found)

    def _relay(self, row: Row) -> None:
        self.relays[str(row["name"])] = row

    def _redelivery(self, _: Row) -> None:
        self.redelivered += 1

    # One transaction.

    def _settle(self, id_: str, flow: Flow, part: Part) -> None:
        """Checks that what belongs together is in this transaction together."""
        told = {int(row["version"] or 0): row for row in part.told}
        lack, inside = -len(part.messages), list(part.inside)
        for before, after, version in part.moves:
            row = told.pop(version, None)
            if row is not None and row.get("reason") == RENAMED:
                self._by_name(id_, flow, part, before, after, row)
                continue
            if row is None and before is not None and self.first(before) == self.first(after):
                self.find("torn commit", id_, f"{before} was renamed to {after} without its row of history")
                continue
            lack += after not in self.running and (row is None or self._has_message(before, row))
            if after not in self.known:
                self.find("illegal change", id_, f"from {before} to {after}, which is not what a status is called now")
            said = (row["from_status"], row["to_status"]) if row is not None else None
            is_told, (before, after) = said == (before, after), (self.first(before), self.first(after) or "")
            if before in self.rules.final:
                self.find("resurrection", id_, f"from {before}, which is final, to {after}")
            elif row is None:
                self.find("torn commit", id_, f"from {before} to {after} without its row of history")
                self._legal(id_, before, after)
            elif not is_told:
                self.find("illegal change", id_, f"from {before} to {after}, and history says {said}")
            elif _is_a_consequence(row) or row.get("reason") == ORPHANED:
                self._by_others(id_, flow, part, before, after, str(row["reason"]))
            elif row["actor"] == CLOCK:
                self._by_the_clock(id_, part, before, after)
            elif before is None and str(row["actor"]).startswith(WORKER):
                self._spawned(id_, flow, after)
            elif str(row["actor"]).startswith(WORKER):
                self._by_worker(id_, part, before, after, row, inside)
            else:
                self._by_hand(id_, flow, before, after, row)
        for version in told:
            self.find("torn commit", id_, f"history has version {version}, which no change of this transaction made")
        if lack > 0:
            self._lacks_message[id_].append(f"the change to {flow.status}")
        elif lack < 0:
            self._extra_message[id_] += part.messages[lack:]
        for row in inside:
            self._extra_inside[id_].append(f"attempt {row['attempt']}")
        self._settle_questions(id_, part)
        self._settle_wait(id_, flow, part)
        self._settle_job(id_, flow, part)

    def _settle_questions(self, id_: str, part: Part) -> None:
        """Checks that a question is asked with the change to its status, and ends with the change its answer makes."""
        for row in part.asked:
            if row["status"] not in {after for _, after, _ in part.moves}:
                self.find("torn commit", id_, f"a question is asked in {row['status']}, to which nothing moved it")
        moves = {(self.first(before), self.first(after)) for before, after, _ in part.moves}
        ended = {(self.first(row["status"]), self.first(row["to_status"])) for row in part.answered if row["to_status"]}
        left = {(before, after) for before, after in moves if before in self.rules.asking and before != after}
        for status, to in ended - left:
            self.find("torn commit", id_, f"its question in {status} ended with {to}, to which nothing moved it")
        for status, to in left - ended:
            self.find("torn commit", id_, f"it moved from {status} to {to}, and its question did not end")

    def _settle_wait(self, id_: str, flow: Flow, part: Part) -> None:
        """Checks that all that it waits for begins and ends with the status in which it waits."""
        status = self.first(flow.status)
        if part.moves and flow.wait is None and status in self.waits:
            self.find("torn commit", id_, f"in {flow.status} it waits for nothing")
        elif part.moves and flow.wait is not None and status not in self.waits:
            self.find("torn commit", id_, f"it is {flow.status}, and its wait goes on")
        if part.moves and flow.questions and status not in self.rules.asking:
            self.find("torn commit", id_, f"it is {flow.status}, and {len(flow.questions)} questions are open")
        if any(before in self.rules.joining for before, *_ in part.moves) and status == self.rules.cancelled:
            flow.left_children = True
            for child, row in flow.children.items():
                if row["cancel_to"] is None and self._at_work_still(child):
                    self.find("torn commit", id_, f"it was cancelled, and its child {child} was not")

    def _at_work_still(self, id_: str) -> bool:
        return self.first(self._flow(id_).status) not in self.rules.final

    def first(self, status: str | None) -> str | None:
        """Returns what a status was called at first."""
        return self.rules.renamed.get(status or "", status)

    def _named(self, do: Callable[[str], None], row: Row) -> None:
        """Handles what a deploy writes: it deletes the statuses that are there, and inserts those of its version."""
        self._deploying = True
        do(str(row["status"]))

    def _wait_written(self, row: Row) -> None:
        id_ = str(row["workflow_id"])
        self._part(id_)
        self.flows[id_].wait = row

    def _wait_ended(self, row: Row) -> None:
        id_ = str(row["workflow_id"])
        self._part(id_)
        self.flows[id_].wait = None

    def _signalled(self, row: Row) -> None:
        part = self._part(str(row["workflow_id"]))
        self.senders.add(str(row["sent_by"]))
        part.heard += row["taken_at"] is not None

    def _child(self, row: Row) -> None:
        child, parent = str(row["child_id"]), str(row["parent_id"])
        self._flow(parent).children[child] = row
        self._flow(child).parent = parent

    def _effect(self, row: Row) -> None:
        self.ledger.written(row, self._flow(str(row["workflow_id"])).job)

    def _answered(self, row: Row) -> None:
        flow = self._flow(str(row["workflow_id"]))
        if row["ended"] is None:
            flow.questions[row.get("id")] = row
        else:
            flow.questions.pop(row.get("id"), None)
        if row.get("effect"):
            if row["ended"] == "decided":
                self.ledger.question(row)
                self._count_votes(row)
        elif row["ended"] is not None and row["edited"] is None:
            self._part(str(row["workflow_id"])).answered.append(row)
            if row["ended"] == "decided":
                self._count_votes(row)

    def _asked(self, row: Row) -> None:
        part = self._part(str(row["workflow_id"]))
        if row.get("effect"):
            self.ledger.question(row)
        else:
            part.asked.append(row)
        self._flow(str(row["workflow_id"])).questions[row.get("id")] = row
        self.askers[row.get("id")] = {row.get("asked_by"), row.get("asked_login")} - {None}

    def _voted(self, row: Row) -> None:
        question, people = row["approval_id"], {row["person"], row["cast_by"]}
        self.votes[question][row["person"]] = row
        self.voices.add(str(row["cast_by"]))
        if people & self.askers.get(question, set()):
            self.find(
                "miscounted", str(question), f"{row['cast_by']} votes for {row['person']} on what one of them asks"
            )

        until = self.delegations.get((row["cast_by"], row["person"]), "")
        if row["cast_by"] != row["person"]:
            self.kinds["delegated votes"] += 1
            if not until or seconds(row["voted_at"]) >= seconds(until):
                self.find(
                    "miscounted",
                    str(question),
                    f"{row['cast_by']} votes for {row['person']}, by no delegation that holds",
                )

    def _delegated(self, row: Row) -> None:
        self.delegations[row["to_person"], row["from_person"]] = str(row["until"])
        self.delegators.add(row["from_person"])

    def _delegation_ended(self, row: Row) -> None:
        self.delegations.pop((row["to_person"], row["from_person"]), None)
        self.ended.add(row["from_person"])

    def _count_votes(self, row: Row) -> None:
        """Checks that a question with approvers is decided by as many people as it asks for."""
        self.voices.add(str(row.get("decided_by")))
        needed = sum(json.loads(row.get("approvers") or "{}").values())
        people = [person for person, vote in self.votes[row.get("id")].items() if vote["option"] == row.get("decision")]
        if len(people) < needed:
            self.find("miscounted", str(row["workflow_id"]), f"{people} decided it, and {needed} are needed")

    def _has_message(self, before: str | None, row: Row) -> bool:
        """Returns whether who made a change sends a message with it: a handler, or a client that says so."""
        call = self.calls.get(str(row["actor"]))
        spawned = before is None and str(row["actor"]).startswith(WORKER)
        engine = row["actor"] == CLOCK or _is_a_consequence(row)
        return not (engine or spawned or (call is not None and call.kind == "cancel"))

    def _by_name(self, id_: str, flow: Flow, part: Part, before: str | None, after: str, row: Row) -> None:
        """Checks that a deploy has renamed a status, and that the workflow has kept all that it had."""
        self.kinds[RENAMED] += 1
        if (row["from_status"], row["to_status"]) != (before, after):
            self.find(
                "illegal change", id_, f"it was renamed, and history says {row['from_status']}, {row['to_status']}"
            )
        if not self._deploying or before in self.known or after not in self.known:
            self.find("illegal change", id_, f"{before} was renamed to {after}, which no deploy has done")
        elif self.first(before) != self.first(after):
            self.find("illegal change", id_, f"{before} was renamed to {after}, which is another status")
        job, kept = part.job, flow.job
        if (job is None) != (kept is None) or part.made or part.ended:
            self.find("torn commit", id_, f"its job came or went when {before} was renamed to {after}")
        elif job is not None and kept is not None and any(job.get(name) != kept.get(name) for name in KEPT):
            self.find("torn commit", id_, f"its job was written when {before} was renamed to {after}")

    def _settle_names(self) -> None:
        """Checks, after a deploy, that nothing leads to the former name of a status."""
        self._deploying = False
        for id_, flow in self.flows.items():
            wait, job = flow.wait or {}, flow.job or flow.dead or {}
            named = {
                "it": flow.status,
                "its job": job.get("status"),
                "its deadline": job.get("on_deadline"),
                "its wait": wait.get("to_status"),
            }
            for question in flow.questions.values():
                named["its question"] = question["status"]
                for answer, to in json.loads(question.get("options") or "{}").items():
                    named[f"the answer {answer}"] = to
            for what, status in named.items():
                if status is not None and status not in self.known:
                    self.find("lost", id_, f"{what} leads to {status}, which a deploy has renamed")

    def _by_others(self, id_: str, flow: Flow, part: Part, before: str | None, after: str, reason: str) -> None:
        """Checks that the engine moves what waited for a signal that is there, for children that have ended, or its parent."""
        self.kinds[SIGNAL.strip() if reason.startswith(SIGNAL) else reason] += 1
        ends = before in (self.rules.called if reason.startswith(SIGNAL) else self.rules.joining)
        if reason == ORPHANED:
            parent = self.flows.get(flow.parent or "")
            to = parent.children[id_]["cancel_to"] if parent is not None else None
            if parent is None or self.first(to) != after or self._at_work_still(str(flow.parent)):
                self.find("phantom", id_, f"it came to {after} as its parent has ended, which has not")
        elif not ends or (before, after) not in self.rules.by_hand:
            self.find("illegal change", id_, f"from {before} to {after}, as {reason}")
        elif reason.startswith(SIGNAL):
            part.heard -= 1
            if part.heard < 0:
                self.find("phantom", id_, f"it came to {after} by a signal that was not there")
        elif left := [child for child in flow.children if self._at_work_still(child)]:
            self.find("too early", id_, f"it came to {after} before its children {left} have ended")

    def _spawned(self, id_: str, flow: Flow, after: str) -> None:
        """Checks that a child begins with its parent's wait."""
        self.kinds["spawned"] += 1
        parent = self._parts.get(flow.parent or "")
        if parent is None or after != self.rules.initial:
            self.find("phantom", id_, f"a worker has started it in {after}, and no parent has spawned it")
        elif not any(self.first(to) in self.rules.joining for _, to, _ in parent.moves):
            self.find("torn commit", id_, "it was spawned, and its parent did not move")

    def _by_the_clock(self, id_: str, part: Part, before: str | None, after: str) -> None:
        """Checks that a wait ends where its deadline leads, and only after the deadline."""
        deadline = part.job.get("deadline") if part.job is not None else None
        if (before, after) not in self.rules.timed:
            self.find("illegal change", id_, f"the clock moved it from {before} to {after}")
        elif deadline is None:
            self.find("phantom", id_, f"the clock moved it from {before}, where it had no deadline")
        elif self._at < seconds(deadline) - SLACK:
            self.find("too early", id_, f"the clock moved it from {before} before its deadline, {deadline}")

    def _legal(self, id_: str, before: str | None, after: str) -> None:
        if before is None:
            legal = after == self.rules.initial
        else:
            stage = self.takes.get(before)
            legal = (before, after) in self.rules.by_hand or (stage is not None and _may(stage, before, after))
        if not legal:
            self.find("illegal change", id_, f"from {before} to {after}")

    def _by_worker(self, id_: str, part: Part, before: str | None, after: str, row: Row, inside: list[Row]) -> None:
        """Checks that a worker makes only changes of the job that it holds, while it holds it, with its effect."""
        job, who = part.job, str(row["actor"]).removeprefix(WORKER)
        stage = self.takes.get(before or "")
        if stage is None or not _may(stage, before, after):
            self.find("illegal change", id_, f"{row['actor']} made it, from {before} to {after}")
            return
        if job is None or job["owner"] != who:
            held = "nobody holds" if job is None or job["owner"] is None else f"worker {job['owner']} holds"
            self.find("zombie write", id_, f"{row['actor']} changed it from {before} to {after}; {held} the job")
        elif (job["stage"], job["attempt"]) != (row["stage"], row["attempt"]):
            held = f"{job['stage']}, attempt {job['attempt']}"
            self.find("zombie write", id_, f"a change by {row['stage']}, attempt {row['attempt']}; held is {held}")
        elif stage.effect == "outside" and after != stage.running and not self._had_effect(id_, row):
            # What is committed belongs to another attempt, or to none.
            name = "zombie write" if self.keys.get((id_, stage.name)) else "lost"
            self.find(name, id_, f"{stage.name} finished, and attempt {row['attempt']} had no effect outside")
        if stage.effect == "ledger" and job is not None:
            self.ledger.passed(id_, job["entered"])
        if stage.effect == "inside" and after != stage.running:
            if not inside:
                self._lacks_inside[id_].append(f"the change to {after}")
                return
            self._done_inside.add(id_)
            if (attempt := inside.pop(0)["attempt"]) != row["attempt"] and row["attempt"] is not None:
                self.find("zombie write", id_, f"attempt {row['attempt']} finished with the effect of {attempt}")

    def _had_effect(self, id_: str, row: Row) -> bool:
        return (id_, str(row["stage"]), int(row["attempt"] or 0)) in self.outside

    def _by_hand(self, id_: str, flow: Flow, before: str | None, after: str, row: Row) -> None:
        """Checks that a change by hand was asked for by someone who was not told that it failed."""
        actor = str(row["actor"])
        legal = after == self.rules.initial if before is None else (before, after) in self.rules.by_hand
        if not legal or row["stage"] is not None:
            self.find("illegal change", id_, f"{actor} made it by hand, from {before} to {after}")
            return
        call = self.calls.get(actor)
        if call is None:
            self.find("phantom", id_, f"nobody asked to come to {after}, but {actor} did")
        elif call.outcome == "failed":
            self.find("phantom", id_, f"it came to {after} by {actor}, who was told that it failed: {call.said}")
        elif call.entity != flow.entity or self.first(call.to_status) != (None if before is None else after):
            self.find("phantom", id_, f"it came to {after} by {actor}, who asked for {call.entity}, {call.to_status}")
        elif self.told_by[actor] > 1:
            self.find("phantom", id_, f"{actor} asked for one change, and this is another one")
        elif call.kind == "cancel":
            self.kinds["cancelled"] += 1

    def _settle_job(self, id_: str, flow: Flow, part: Part) -> None:
        """Checks that the open job ends with the change and the next one begins; none comes or goes without reason."""
        status = self.first(flow.status)
        stage, job = self.takes.get(status or ""), flow.job
        if job is not None and job["due"] is None and not flow.has_effect_asked:
            self.find("lost", id_, "its job is parked without a question")
        if job is None and part.moves and status in self.timed:
            self.find("lost", id_, f"in {flow.status} it waits without a deadline: nobody ends that")
        if job is not None and stage is None and (job["stage"], job["status"]) == (None, flow.status):
            if status not in self.timed:
                self.find("phantom", id_, f"in {flow.status} it has a deadline")
        elif job is not None and stage is None:
            if status in self.rules.final:
                self.find("resurrection", id_, f"in {flow.status}, which is final, it has a job of {job['stage']}")
            else:
                name = "torn commit" if part.moves else "phantom"
                self.find(name, id_, f"in {flow.status}, which no stage takes, it has a job of {job['stage']}")
        elif job is not None and stage is not None and (job["stage"], job["status"]) != (stage.name, flow.status):
            self.find("torn commit", id_, f"in {flow.status} it has the job of {job['status']}")
        elif (part.moves or part.made) and flow.dead is not None:
            self.find("torn commit", id_, f"in {flow.status} it still has the dead job of {flow.dead['status']}")
        elif part.made and not part.moves:
            if part.undied:
                flow.made_again += 1
            elif flow.without_job:
                self.find("torn commit", id_, f"the job of {flow.without_job} was made in another transaction")
                flow.without_job = None
            else:
                self.find("phantom", id_, f"a job of {part.made['stage']} that no change has made")
        if part.moves:
            if flow.without_job:
                self.find("lost", id_, f"in {flow.without_job} it never had a job")
            flow.without_job = flow.status if stage is not None and job is None else None
        if part.died:
            self._buried(id_, part)
        elif part.ended and not part.moves and flow.dead is None and part.ended["status"] == flow.status:
            self.find("lost", id_, f"its job of {part.ended['stage']} went, and nothing else happened")
        elif part.undied and not part.moves and not part.made:
            self.find("lost", id_, "its dead job went, and nothing else happened")

    def _buried(self, id_: str, part: Part) -> None:
        assert part.died is not None
        stage, job = self.stages.get(str(part.died["stage"])), part.ended
        attempts = int(part.died["attempts"] or 0)
        if job is None:
            self.find("torn commit", id_, "it has a dead job, and its job did not end")
        elif job["owner"] is None or int(job["attempt"] or 0) != attempts:
            self.find("zombie write", id_, f"its job died in attempt {attempts}, which nobody held")
        elif stage is not None and attempts < stage.attempts and not stage.rejects:
            self.find("lost", id_, f"{stage.name} is dead after {attempts} of its {stage.attempts} attempts")

    def _settle_inbox(self) -> None:
        for found in self._now_consumed - self._now_recorded:
            self.find("torn commit", found, "a consumer's effect without the record in its inbox")
        self._now_recorded, self._now_consumed = set(), set()

    # The whole log.

    def _pair(self) -> None:
        """Pairs what one transaction lacked with what another had too much of: it was torn. What no transaction had is lost."""
        for id_ in {*self._lacks_message, *self._extra_message}:
            lacking, extra = self._lacks_message[id_], self._extra_message[id_]
            for change, message in zip(lacking, extra, strict=False):
                self.find("torn commit", id_, f"the message of {change} is in another transaction: {message}")
            for change in lacking[len(extra) :]:
                self.find("lost", id_, f"{change} has no message")
            for message in extra[len(lacking) :]:
                self.find("phantom", id_, f"a message of no change: {message}")
        for id_ in {*self._lacks_inside, *self._extra_inside}:
            lacking, extra = self._lacks_inside[id_], self._extra_inside[id_]
            for change, effect in zip(lacking, extra, strict=False):
                self.find("torn commit", id_, f"the effect inside of {change} is in another transaction: {effect}")
            for change in lacking[len(extra) :]:
                self.find("lost", id_, f"{change} has no effect inside")
            for effect in extra[len(lacking) :]:
                done = lacking or id_ in self._done_inside
                self.find("effect twice" if done else "phantom", id_, f"an effect inside of no change: {effect}")


def _is_a_consequence(row: Row) -> bool:
    """Returns whether a change follows from what its actor has done elsewhere: sent a signal, or ended the last child."""
    reason = row.get("reason") or ""
    return reason.startswith(SIGNAL) or reason == JOINED


def _may(stage: Stage, before: str | None, after: str) -> bool:
    """Returns whether a stage may make this change."""
    if stage.running is None:
        return before == stage.on and after in stage.to
    return (before, after) == (stage.on, stage.running) or (before == stage.running and after in stage.to)


def seconds(text: str | None) -> float:
    """Converts a time as Postgres prints it to seconds since 1970."""
    return datetime.fromisoformat(str(text)).timestamp()
