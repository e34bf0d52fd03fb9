"""What the witnesses saw of a run, as plain data: all that the checker is given.

Four witnesses that don't know of each other: what clients were told (`calls`), the audit trail (`changes`) with what the
tables hold in the end, the write-ahead log by logical decoding (`transactions`), and what the world saw (`effects` in
tables without any unique constraint, `arrivals` at a queue of the harness's own). Times are seconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage may do. `effect`: "outside", a row of a connection of its own, written before the handler returns;
    "inside", a row in the transaction of the status change. `running` is its in-progress status. `backoff[n]` is how
    many seconds at least attempt n+2 waits for. `rejects`: its handler may give up before its attempts are used up. `most` of
    its jobs are held at once, and `most_each` of each partition."""

    name: str
    on: str
    to: frozenset[str]
    attempts: int
    effect: Literal["outside", "inside"] | None = None
    running: str | None = None
    backoff: tuple[float, ...] = ()
    rejects: bool = False
    most: int | None = None
    most_each: int | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What is legal: the pipeline as it was deployed."""

    initial: str
    final: frozenset[str]
    stages: tuple[Stage, ...]
    by_hand: frozenset[tuple[str, str]]  # (from, to) of changes that people make
    waiting: frozenset[str]  # statuses that no stage takes, and that aren't final
    timed: frozenset[tuple[str, str]] = frozenset()  # (from, to) of waits that end by themselves in time


@dataclass(frozen=True, slots=True)
class Call:
    """What a client asked for, and what it was told. Whatever is not proven to have failed is unknown."""

    client: str
    kind: Literal["submit", "change", "retry"]
    entity: str
    outcome: Literal["ok", "failed", "unknown"]
    began: float
    ended: float
    to_status: str | None = None  # of a change
    said: str = ""  # the answer or the error; of a submit, "created" or "exists"


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the audit trail. `stage` and `attempt` are of the worker's job, None for changes by hand."""

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
    """A row of workflow_states, in the end."""

    id: str
    entity: str
    status: str
    version: int


@dataclass(frozen=True, slots=True)
class Job:
    """A row of jobs in the end."""

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
    """One row that a committed transaction wrote. `table` is without its schema and is the root of its partitions;
    `row` has the new values as Postgres prints them (of a delete: the key's), None for null. What an update left
    alone and did not fit into the row is missing."""

    table: str
    kind: Literal["insert", "update", "delete"]
    row: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Transaction:
    """A committed transaction, from the write-ahead log. They come in the order of their commits."""

    xid: int
    lsn: int
    at: float
    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class Effect:
    """A row of the world. "outside" and "inside" are a handler's; "consumer" is of a consumer with the inbox."""

    kind: Literal["outside", "inside", "consumer"]
    workflow_id: str | None
    stage: str | None
    attempt: int | None
    key: str | None  # outside: the idempotency key
    message_id: str | None  # consumer
    at: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """A delivery as the harness's own queue saw it, in its order. `at` is when it was seen, for the story."""

    message_id: str  # the stable one, of the headers
    wire_id: str
    topic: str
    key: str | None
    payload: Any
    at: float = 0.0


@dataclass(slots=True)
class History:
    """All of a run. `strict` is whether the relay kept order per key; `drained` is why it was not drained in time."""

    rules: Rules
    strict: bool
    calls: list[Call] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    workflows: list[Workflow] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    dead_jobs: list[DeadJob] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    parked: list[tuple[str, str]] = field(default_factory=list)  # (message id, reason): by relays and by consumers
    inbox: list[str] = field(default_factory=list)  # message ids that the consumer has recorded
    not_drained: list[str] = field(default_factory=list)
    held_up: list[str] = field(default_factory=list)  # what rows that somebody held have held up besides themselves
    ended: float = 0.0
