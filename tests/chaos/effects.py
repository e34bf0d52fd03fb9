"""Checks the effects of `run.effect`: the ledger as the log has it, and against the bank's book.

Each intention has at most one call. An effect is intended again only if the bank, a look-up or a person has said that
it has not happened, or if it is one of "repeat". A process that was frozen may call late: the bank honours the key, and
the order in its book tells what could be known by then.

Nothing is exempt. An intention that is lost after its call would have to be: the call is made again with the same key.
No configuration loses a commit that was acknowledged, and a server that does so is to be found.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from .bank import receipt
from .history import Call, Entry, Rules

Row = dict[str, str | None]
Find = Callable[[str, str, str], None]

BY_A_WORKER = ("call", "look_up")
"""By what it is known what has become of an effect, if not by a person."""


class Ledger:
    """What the log has of effects, by their keys. Each anomaly is reported to `find`."""

    def __init__(self, rules: Rules, calls: dict[str, Call], find: Find) -> None:
        self.rules, self.calls, self.find = rules, calls, find
        self.rows: dict[str, Row] = {}
        self.counts: Counter[str] = Counter()  # called, looked up, charged again, asked
        self._intended: Counter[str] = Counter()
        self._not_done: Counter[str] = Counter()  # answers of people by which the call may be made again
        self._repeat: set[str] = set()  # whose last answer was given without a look into the book
        self._passed: set[str] = set()  # whose workflow has gone on
        self._keys: dict[str | None, str] = {}  # by call
        self._work: dict[tuple[str, str | None], list[str]] = defaultdict(list)  # by workflow and its version at entry
        self._questions: list[Row] = []  # asked or answered in this transaction

    def written(self, row: Row, job: Row | None) -> None:
        """Handles an intention, or what has come of it. `job` is the workflow's as it is then."""
        id_, key = str(row["workflow_id"]), key_of(row)
        old, self.rows[key] = self.rows.get(key), row
        is_held = job is not None and job["owner"] is not None and job["entered"] == row["entered"]
        if old is None or old["call"] != row["call"]:
            self._intended[key] += 1
            self._keys[row["call"]] = key
            if job is None or not is_held or job["attempt"] != row["attempt"]:
                self.find("zombie write", id_, f"attempt {row['attempt']} intends {key}, and does not hold the job")
            if old is None:
                self._work[id_, row["entered"]].append(key)
            elif old["state"] == "done":
                self.find("effect twice", id_, f"{key} is done, and is intended again")
        elif _noted(old) != _noted(row) and not is_held and row["known_by"] in (*BY_A_WORKER, None):
            is_asked = any(asked["effect"] == row["call"] for asked in self._questions)  # it is not known any more
            if not is_asked:
                self.find("zombie write", id_, f"{key} is {row['state']} by an attempt that does not hold the job")

    def question(self, row: Row) -> None:
        """Handles a question about a call, or its answer."""
        self._questions.append(row)

    def settle(self) -> None:
        """Checks, after a transaction, that questions and answers belong to what the ledger says."""
        for row in self._questions:
            id_, decision = str(row["workflow_id"]), row.get("decision")
            key = self._keys.get(row["effect"])
            said = self.rows[key]["state"] if key is not None else None
            if key is None:
                self.find("phantom", id_, f"a question is about a call without an intention: {row['effect']}")
            elif row["ended"] is None:
                self.counts["asked"] += 1
                if said != "started":
                    self.find("phantom", id_, f"it is asked what has become of {key}, which is {said}")
            else:
                self._answered(id_, key, row)
                if said != ("done" if decision == "yes" else "not done"):
                    self.find("lost", id_, f"{key} was answered with {decision}, and is {said}")
        self._questions.clear()

    def _answered(self, id_: str, key: str, row: Row) -> None:
        self._not_done[key] += row["decision"] != "yes"
        if row["decision"] == "repeat":
            self._repeat.add(key)
        else:
            self._repeat.discard(key)
        call = self.calls.get(str(row["decided_by"]))
        if call is None:
            self.find("phantom", id_, f"{row['decided_by']} has answered about a call that was not made")
        elif call.outcome == "failed":
            self.find("phantom", id_, f"{call.client} has answered, and was told that it failed: {call.said}")

    def passed(self, id_: str, entered: str | None) -> None:
        """Checks that an attempt which ends well knows what has become of its call."""
        if not self._work.get((id_, entered)):
            self.find("lost", id_, "it went on without its effect")
        for key in self._work.get((id_, entered), ()):
            row = self.rows[key]
            self._passed.add(key)
            if row["state"] != "done":
                self.find("lost", id_, f"it went on, and {key} is {row['state']}")
            elif json.loads(row["result"] or "null") != receipt(key):
                self.find("lost", id_, f"it went on, and the result of {key} is {row['result']}")

    def check(self, book: Iterable[Entry]) -> None:
        """Checks in the end that the bank has what the ledger says."""
        entries: dict[str, list[Entry]] = {key: [] for key in self.rows}
        for entry in book:
            entries.setdefault(entry.key, []).append(entry)
        for key, of_key in entries.items():
            self._calls(key, of_key)
        for (id_, _), keys in self._work.items():
            if len(keys) > 1:
                self.find("effect twice", id_, f"one handler has {keys}")

    def _calls(self, key: str, entries: list[Entry]) -> None:
        id_, row = key.partition(":")[0], self.rows.get(key)
        calls = [entry for entry in entries if entry.what in ("charge", "refuse")]
        first = next((n for n, entry in enumerate(entries) if entry.what == "charge"), len(entries))
        denied = Counter(entry.what for entry in entries[:first])  # in the bank's answers before it was charged
        intended, is_charged = self._intended[key], first < len(entries)
        self.counts["called"] += len(calls)
        self.counts["looked up"] += sum(entry.what == "look" for entry in entries)
        self.counts["charged again"] += sum(entry.what == "charge" for entry in entries[first + 1 :])
        if row is None:
            self.find("phantom", id_, f"{key} was called without an intention")
            return
        if len(calls) > intended:
            self.find("effect twice", id_, f"{key} was called {len(calls)} times, and intended {intended} times")
        most = 1 + denied["refuse"] + denied["look"] + self._not_done[key]
        if intended > most and row["name"] not in self.rules.repeated:
            self.find("effect twice", id_, f"{key} was intended {intended} times, and not done {most - 1} times")
        if row["state"] == "done" and not is_charged:
            self.find("lost" if key in self._passed else "phantom", id_, f"{key} is done, and was never charged")
        elif row["state"] == "not done" and is_charged and not denied and key not in self._repeat:
            self.find("lost", id_, f"{key} is not done, and was charged before anybody could say so")


def key_of(row: Row) -> str:
    """Returns the idempotency key of an effect, as docs/effects.md has it: of the work, and of its name."""
    return f"{row['workflow_id']}:{row['entered']}:{row['name']}"


def _noted(row: Row) -> tuple[str | None, ...]:
    return row["state"], row["known_by"], row["error"]
