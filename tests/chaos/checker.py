"""Names what was wrong with a run: a pure function of what the witnesses saw.

Four independent witnesses must tell the same story. A call that was never answered may have happened or not.

lost · phantom · illegal change · resurrection · zombie write · two holders · free put-back · too many · too early ·
torn commit · effect twice · leftover · marked early · inversion · stuck · held up · miscounted
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Container
from dataclasses import dataclass, field

from .history import History
from .replay import Replay, Row, seconds
from .story import recoveries, story

__all__ = ["Anomaly", "Verdict", "check", "recoveries", "story"]


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something that must not happen. `subject` is a workflow, a message or the entity of a call."""

    name: str
    subject: str
    why: str


@dataclass(slots=True)
class Verdict:
    """All anomalies, each name once for a subject, and counts of what was checked."""

    anomalies: list[Anomaly] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.anomalies


def check(history: History) -> Verdict:
    """Returns the verdict on a run."""
    return _Checker(history).verdict()


class _Checker:
    def __init__(self, history: History) -> None:
        self.history = history
        self.calls = {call.client: call for call in history.calls}
        self.found: dict[tuple[str, str], Anomaly] = {}
        self.replay = Replay(history.rules, self.calls, self.find)

    def find(self, name: str, subject: str, why: str) -> None:
        self.found.setdefault((name, subject), Anomaly(name, subject, why))

    def verdict(self) -> Verdict:
        self.replay.run(self.history.transactions)
        self._tables()
        self._audit_trail()
        self._answers()
        self._ends()
        self._world()
        self._effects()
        self._messages()
        self._consumer()
        if self.history.strict:
            self._order()
        return Verdict(list(self.found.values()), self._counts())

    # The tables contain in the end what committed transactions wrote, and all of it.

    def _tables(self) -> None:
        left = {workflow.id: workflow for workflow in self.history.workflows}
        for id_, flow in self.replay.flows.items():
            workflow = left.pop(id_, None)
            if workflow is None:
                self.find("lost", id_, f"the workflow of {flow.entity} was committed, and is not there")
            elif (workflow.status, workflow.version) != (flow.status, flow.version):
                why = f"it was committed as {flow.status}, {flow.version}, and is {workflow.status}, {workflow.version}"
                self.find("lost", id_, why)
        for id_, workflow in left.items():
            self.find("phantom", id_, f"no transaction has made {workflow.entity}")
        jobs = {job.workflow_id for job in self.history.jobs}
        dead = {job.workflow_id for job in self.history.dead_jobs}
        for id_, flow in self.replay.flows.items():
            for what, row, rows in (("job", flow.job, jobs), ("dead job", flow.dead, dead)):
                if (row is not None) != (id_ in rows):
                    how = "was committed, and is not there" if row is not None else "is there, and was not committed"
                    self.find("lost" if row is not None else "phantom", id_, f"its {what} {how}")
        known = {row.key: (row.workflow_id, row.call, row.state) for row in self.history.ledger}
        for key, row in self.replay.ledger.rows.items():
            if known.pop(key, None) != (row["workflow_id"], row["call"], row["state"]):
                self.find("lost", str(row["workflow_id"]), f"{key} was committed as {row['state']}, and is not that")
        for key, (id_, *_) in known.items():
            self.find("phantom", id_, f"no transaction has intended {key}")

    def _audit_trail(self) -> None:
        committed = dict(self.replay.changes)
        for change in self.history.changes:
            row = committed.pop((change.workflow_id, change.version), None)
            told = change.from_status, change.to_status, change.actor
            if row is None:
                self.find(
                    "phantom", change.workflow_id, f"no transaction wrote version {change.version} of its history"
                )
            elif told != (row["from_status"], row["to_status"], row["actor"]):
                self.find("phantom", change.workflow_id, f"version {change.version} of its history was rewritten")
        for id_, version in committed:
            self.find("lost", id_, f"version {version} of its history is gone")

    # What clients were told is true.

    def _answers(self) -> None:
        entities = {flow.entity: id_ for id_, flow in self.replay.flows.items()}
        again: dict[str, Counter[str]] = defaultdict(Counter)
        for call in self.history.calls:
            id_ = entities.get(call.entity)
            if call.kind == "retry":
                again[call.entity][call.outcome] += 1
            elif call.outcome != "ok" or call.client in self._heard(call.kind):
                pass
            elif call.kind in ("delegate", "end"):
                if call.entity not in (self.replay.delegators if call.kind == "delegate" else self.replay.ended):
                    self.find(
                        "lost", call.entity, f"{call.client} was told {call.said!r}, and there is no such delegation"
                    )
            elif id_ is None:
                self.find("lost", call.entity, f"{call.client} was told {call.said!r}, and there is no workflow")
            elif call.kind != "submit" or call.said != "exists":
                self.find("lost", id_, f"{call.client} was told {call.said!r}, and there is no such {call.kind}")
        for id_, flow in self.replay.flows.items():
            told = again.get(str(flow.entity), Counter())
            if flow.made_again < told["ok"]:
                self.find(
                    "lost", id_, f"its job was made again {told['ok']} times, and {flow.made_again} were committed"
                )
            elif flow.made_again > told["ok"] + told["unknown"]:
                self.find("phantom", id_, f"its job was made again {flow.made_again} times, and no call asked for that")

    def _heard(self, kind: str) -> Container[str]:
        """Returns whose calls of a kind the log knows."""
        return {"voice": self.replay.voices, "signal": self.replay.senders}.get(kind, self.replay.told_by)

    # All that is due has been done.

    def _ends(self) -> None:
        for why in self.history.not_drained:
            self.find("stuck", "the run", why)
        for why in self.history.held_up:
            self.find("held up", "the run", why)
        for job in self.history.jobs:
            if self._may_wait(job.workflow_id):
                continue
            self.find("stuck", job.workflow_id, f"{job.stage} is due, attempt {job.attempt}, held by {job.owner}")
        for id_, flow in self.replay.flows.items():
            if flow.without_job:
                self.find("lost", id_, f"in {flow.without_job} it has no job, so nobody will go on with it")
            if flow.has_effect_asked and flow.job is not None:
                self.find("stuck", id_, "a question about its effect is open")
            for child in flow.children if flow.left_children else ():
                other = self.replay.flows[child]
                if self.replay.first(other.status) not in self.history.rules.final:
                    self.find(
                        "stuck", child, f"its parent was cancelled while it waited, and it is still {other.status}"
                    )

    def _may_wait(self, id_: str) -> bool:
        """Returns whether its job is a wait whose time has not come."""
        flow = self.replay.flows.get(id_)
        job = flow.job if flow is not None else None
        if job is None or job["stage"] is not None or job["deadline"] is None:
            return False
        return seconds(job["deadline"]) > self.history.ended

    # The world saw what was committed.

    def _world(self) -> None:
        seen: dict[str, Counter[tuple[str, str, int]]] = {"outside": Counter(), "inside": Counter()}
        consumed: Counter[str] = Counter()
        for effect in self.history.effects:
            if effect.kind == "consumer":
                consumed[str(effect.message_id)] += 1
            else:
                seen[effect.kind][str(effect.workflow_id), str(effect.stage), effect.attempt or 0] += 1
        for kind, written in (("outside", self.replay.outside), ("inside", self.replay.inside)):
            for key in (seen[kind].keys() | written.keys()) if seen[kind] != written else ():
                self._same(key[0], f"effects {kind} of {key[1]}, attempt {key[2]}", seen[kind][key], written[key])
        for found in (consumed.keys() | self.replay.consumed.keys()) if consumed != self.replay.consumed else ():
            self._same(found, "effects of its consumer", consumed[found], self.replay.consumed[found])

    def _same(self, subject: str, what: str, seen: int, written: int) -> None:
        if seen != written:
            self.find("lost" if seen < written else "phantom", subject, f"{written} {what} committed, and {seen} seen")

    # The bank saw what the ledger says.

    def _effects(self) -> None:
        self.replay.ledger.check(self.history.book)

    # Every message was delivered, as it was written.

    def _messages(self) -> None:
        parked = {found for found, _ in self.history.parked}
        arrived: set[str] = set()
        for arrival in self.history.arrivals:
            row = self.replay.messages.get(arrival.message_id)
            if row is None:
                self.find(
                    "phantom", arrival.message_id, f"{arrival.topic} of {arrival.key} arrived, and nobody wrote it"
                )
            elif arrival.message_id not in arrived and not _is_the_same(
                row, arrival.topic, arrival.key, arrival.payload
            ):
                self.find("phantom", arrival.message_id, "it arrived otherwise than it was written")
            arrived.add(arrival.message_id)
        for found, reason in self.history.parked:
            if found not in self.replay.messages:
                self.find("phantom", found, f"it is parked ({reason}), and nobody wrote it")
        cursors = [_Cursor(row) for row in self.replay.relays.values()]
        for found, row in self.replay.messages.items():
            if found in arrived or found in parked:
                continue
            what = f"{row['topic']} of {row['key']}"
            if any(cursor.has_passed(row) for cursor in cursors):
                self.find("marked early", found, f"the cursor has passed {what}, which never arrived")
            elif not self.history.not_drained:
                self.find("lost", found, f"{what} was committed, and never arrived")

    # A consumer has one effect for each message.

    def _consumer(self) -> None:
        consumed, recorded = self.replay.consumed, self.replay.recorded
        for found in self.history.inbox:
            if found not in consumed:
                self.find("marked early", found, "it is recorded in the inbox, without its effect")
        if lost := recorded - set(self.history.inbox):
            for found in lost:
                self.find("lost", found, "its record in the inbox was committed, and is gone")
        for found in consumed:
            if found not in self.replay.messages:
                self.find("phantom", found, "a consumer had an effect, and nobody wrote the message")
        if self.history.not_drained:
            return
        parked = {found for found, _ in self.history.parked}
        for found in {arrival.message_id for arrival in self.history.arrivals}:
            if found not in consumed and found not in parked and found not in recorded:
                self.find("marked early", found, "its queue is empty, and it had no effect")

    # In strict mode, messages of a key arrive in the order of their commits. Without it nothing can be checked: order
    # is promised unless a message is refused or a connection lost, which the records here don't tell.

    def _order(self) -> None:
        place = {found: n for n, found in enumerate(self.replay.messages)}
        last: dict[str | None, int] = {}
        arrived: set[str] = set()
        for arrival in self.history.arrivals:
            here = place.get(arrival.message_id)
            if here is None or arrival.message_id in arrived or arrival.key is None:
                continue
            arrived.add(arrival.message_id)
            if here < last.get(arrival.key, -1):
                row = self.replay.messages[arrival.message_id]
                why = f"{row['topic']} ({arrival.message_id}) of {arrival.key} arrived after what was committed later"
                self.find("inversion", str(row["workflow_id"]), why)
            else:
                last[arrival.key] = here

    def _counts(self) -> dict[str, int]:
        history, replay = self.history, self.replay
        effects = Counter(effect.kind for effect in history.effects)
        outcomes = Counter(call.outcome for call in history.calls)
        return {
            "workflows": len(history.workflows),
            "jobs": replay.jobs,
            "changes": len(history.changes),
            "transactions": len(history.transactions),
            "messages": len(replay.messages),
            "arrivals": len(history.arrivals),
            "effects outside": effects["outside"],
            "effects inside": effects["inside"],
            "effects of consumers": effects["consumer"],
            "effects of the ledger": len(replay.ledger.rows),
            **{
                f"of these {what}": replay.ledger.counts[what]
                for what in ("called", "looked up", "asked", "charged again")
            },
            "commits of several handlers": replay.shared,
            "dead": len(history.dead_jobs),
            "parked": len(history.parked),
            "calls ok": outcomes["ok"],
            "calls failed": outcomes["failed"],
            "calls unknown": outcomes["unknown"],
            **dict(sorted(replay.kinds.items())),
            "retried attempts": replay.retried,
            "effects repeated": sum(replay.outside.values()) - sum(map(len, replay.keys.values())),
            "deliveries repeated": len(history.arrivals) - len({arrival.message_id for arrival in history.arrivals}),
            "redeliveries to consumers": replay.redelivered,
        }


def _is_the_same(row: Row, topic: str, key: str | None, payload: object) -> bool:
    written = None if row["payload"] is None else json.loads(row["payload"])
    return (row["topic"], row["key"], written) == (topic, key, payload)


class _Cursor:
    """A relay's place in the log: two snapshots, and the id up to which the window between them is done."""

    def __init__(self, row: Row) -> None:
        self._start = _Snapshot(str(row["window_start"]))
        self._end = None if row["window_end"] is None else _Snapshot(row["window_end"])
        self._position = int(row["position"] or 0)

    def has_passed(self, message: Row) -> bool:
        xid = int(message["xid"] or 0)
        if self._start.sees(xid):
            return True
        return self._end is not None and self._end.sees(xid) and int(message["id"] or 0) <= self._position


class _Snapshot:
    """A Postgres snapshot: xmin:xmax:the transactions between them that were in progress."""

    def __init__(self, text: str) -> None:
        first, last, between = text.split(":")
        self._first, self._last = int(first), int(last)
        self._open = {int(xid) for xid in between.split(",") if xid}

    def sees(self, xid: int) -> bool:
        return xid < self._first or (xid < self._last and xid not in self._open)
