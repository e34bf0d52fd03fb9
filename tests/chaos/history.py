"""Holds what the witnesses saw of a run, as plain data: all that the checker gets.

There are four independent witnesses: what clients were told (`calls`), the history (`changes`) with the tables' final
contents, the write-ahead log by logical decoding (`transactions`), and what the world saw (`effects` in tables without
any unique constraint, the `book` of a bank, `arrivals` at a queue of the harness). Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage may do.

    `effect`: "outside" is a row of another connection, written before the handler returns; "inside" is a row in the
    transaction of the status change; "ledger" is a call by `run.effect`. `running` is its in-progress status. `backoff[n]` is the least delay (s) of
    attempt n+2. `rejects`: its handler may give up before its attempts are used up. At most `most` of its jobs are held
    at once, and `most_each` of each partition.
    """

    name: str
    on: str
    to: frozenset[str]
    attempts: int
    effect: Literal["outside", "inside", "ledger"] | None = None
    running: str | None = None
    backoff: tuple[float, ...] = ()
    rejects: bool = False
    most: int | None = None
    most_each: int | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What is legal: the pipeline as it was deployed first. Statuses that are renamed later have their first names here."""

    initial: str
    final: frozenset[str]
    stages: tuple[Stage, ...]
    by_hand: frozenset[tuple[str, str]]  # (from, to) of changes by hand
    asking: frozenset[str]  # statuses in which people are asked,
    called: frozenset[str] = frozenset()  # a signal is awaited,
    joining: frozenset[str] = frozenset()  # or the end of children
    timed: frozenset[tuple[str, str]] = frozenset()  # (from, to) of waits that end at their deadline
    cancelled: str | None = None  # where cancelled workflows go
    renamed: Mapping[str, str] = field(default_factory=dict)  # the first name of each other name that a status may have
    repeated: frozenset[str] = frozenset()  # names of effects whose call may be repeated


@dataclass(frozen=True, slots=True)
class Call:
    """A client's call and its answer. Whatever has not provably failed is unknown."""

    client: str
    kind: Literal["submit", "change", "voice", "answer", "signal", "cancel", "retry", "delegate", "end"]
    """A voice is an answer that moved nothing, an answer one about an effect that didn't count; an end is one of a delegation."""
    entity: str  # of a delegation: who delegates
    outcome: Literal["ok", "failed", "unknown"]
    began: float
    ended: float
    to_status: str | None = None  # for a change
    said: str = ""  # the answer or the error; for a submit, "created" or "exists"


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the history. `stage` and `attempt` are of the worker's job, None for changes by hand."""

    id: int
    workflow_id: str
    from_status: str | None
    to_status: str
    version: int
    actor: str
    stage: str | None
    attempt: int | None
    at: float


@dataclass(frozen=True, slots=True)
class Workflow:
    """A row of workflow_states, at the end."""

    id: str
    entity: str
    status: str
    version: int


@dataclass(frozen=True, slots=True)
class Job:
    """A row of jobs, at the end."""

    id: int
    workflow_id: str
    stage: str
    status: str
    attempt: int
    owner: str | None
    claimed_at: float | None


@dataclass(frozen=True, slots=True)
class DeadJob:
    workflow_id: str
    stage: str
    status: str
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class Write:
    """One row that a committed transaction wrote.

    `table` has no schema, and is the root of its partitions. `row` has the new values as Postgres prints them (of a
    delete, the key's), None for null. Large values that an update left unchanged are missing.
    """

    table: str
    kind: Literal["insert", "update", "delete"]
    row: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Transaction:
    """A committed transaction, from the write-ahead log. They come in commit order."""

    xid: int
    lsn: int
    at: float
    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class Effect:
    """A row of the world. "outside" and "inside" are a handler's; "consumer" belongs to a consumer with the inbox."""

    kind: Literal["outside", "inside", "consumer"]
    workflow_id: str | None
    stage: str | None
    attempt: int | None
    key: str | None  # of outside: the idempotency key
    message_id: str | None  # of consumer
    at: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the bank's book. A handler makes a charge, or is refused, or its look_up looks; a person views the book."""

    what: Literal["charge", "refuse", "look", "view"]
    key: str
    by: str
    at: float


@dataclass(frozen=True, slots=True)
class Known:
    """A row of the ledger of effects, at the end."""

    workflow_id: str
    key: str
    call: str
    state: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """A delivery as the harness's own queue saw it, in its order. `at` is when it was seen, for the story."""

    message_id: str  # the stable one, from the headers
    wire_id: str
    topic: str
    key: str | None
    payload: Any
    at: float = 0.0


@dataclass(slots=True)
class History:
    """All about a run. `strict`: the relay kept order per key. `not_drained`: why the run was not drained in time."""

    rules: Rules
    strict: bool
    calls: list[Call] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    workflows: list[Workflow] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    dead_jobs: list[DeadJob] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    ledger: list[Known] = field(default_factory=list)
    book: list[Entry] = field(default_factory=list)  # in the order in which the bank has written it
    arrivals: list[Arrival] = field(default_factory=list)
    parked: list[tuple[str, str]] = field(default_factory=list)  # (message id, reason): by relays and by consumers
    inbox: list[str] = field(default_factory=list)  # message ids that the consumer has recorded
    not_drained: list[str] = field(default_factory=list)
    held_up: list[str] = field(default_factory=list)  # what else was held up by rows that another session held
    ended: float = 0.0
