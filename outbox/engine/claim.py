"""Builds the statements of a claim, and turns the rows that they return into jobs.

Stages with limits have a statement of their own. See sql/queries/claim.sql.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..database import statements
from ..database.statements import array, text_array
from .commit import LOCK_WAIT
from .job import Job, actor, fence
from .lane import Lane
from .pacing import AHEAD, SLACK, ServerClock

SQL = statements.load("claim")


class LimitedRow(NamedTuple):
    """A row of a claim for limited stages: a job, or, with `id` None, the end of a stage's jobs.

    In a job's row, `start` is its start time by the server's clock (None: its stage has no rate). In an end row, it is
    the seconds until the stage may have more jobs (None: there are none). By the server's clock, the claim began at
    `asked` and ended at `answered`.
    """

    pipeline: str
    stage: str
    id: int | None
    workflow_id: str
    entered: int
    attempt: int
    careful: bool
    entity_id: str
    status: str
    version: int
    metadata: str
    start: float | None
    asked: float
    answered: float


def request(
    worker: int, lanes: Sequence[tuple[Lane, int]], now: float, *, careful: bool
) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that claims a number of jobs for each lane, and with `careful` one careful job in all."""
    return SQL["jobs_claim"], {
        "now": None,
        "worker": worker,
        "careful": careful,
        "pipelines": [lane.stage.pipeline for lane, _ in lanes],
        "stages": [lane.stage.name for lane, _ in lanes],
        "marks": [lane.scan.start(now) for lane, _ in lanes],
        "limits": [n for _, n in lanes],
    }


def receive(
    worker: int, lanes: Mapping[tuple[str, str], Lane], rows: Sequence[tuple[Any, ...]]
) -> dict[Lane, list[int]]:
    """Puts claimed rows into their lanes and returns the ids that each lane got."""
    got: dict[Lane, list[int]] = {}
    for pipeline, stage, *fields in rows:
        lane = lanes[pipeline, stage]
        job = Job(lane.stage, worker, *fields)
        lane.add(job)
        if not job.careful:
            got.setdefault(lane, []).append(job.id)
    return got


def request_limited(
    worker: int, lanes: Sequence[tuple[Lane, int]], lead: float, *, careful: bool
) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that claims for limited stages. `lead`: seconds until the start times arrive here."""
    chosen = random.randrange(len(lanes)) if careful else None
    return SQL["jobs_claim_limited"], {
        "worker": worker,
        "pipelines": [lane.stage.pipeline for lane, _ in lanes],
        "stages": [lane.stage.name for lane, _ in lanes],
        "limits": [n for _, n in lanes],
        "careful": [n == chosen for n in range(len(lanes))],
        "lead": lead,
        "ahead": AHEAD,
        "slack": SLACK,
    }


def receive_limited(
    worker: int,
    lanes: Mapping[tuple[str, str], Lane],
    rows: Sequence[tuple[Any, ...]],
    clock: ServerClock,
    sent: float,
) -> dict[Lane, tuple[int, float | None]]:
    """Puts claimed rows into their lanes; returns how many each lane got, and the seconds until it may have more."""
    received = time.monotonic()
    claimed = [LimitedRow._make(row) for row in rows]
    if ends := [row for row in claimed if row.id is None]:
        clock.note(sent, ends[0].asked, ends[-1].answered, received)
    if starts := [row.start for row in claimed if row.id is not None and row.start is not None]:
        clock.arrived(min(starts), received)
    got: dict[Lane, tuple[int, float | None]] = {}
    for row in claimed:
        lane = lanes[row.pipeline, row.stage]
        count, _ = got.get(lane, (0, None))
        if row.id is None:
            got[lane] = count, row.start
            continue
        fields: Any = row[2:11]  # from id to metadata, in the order of Job's fields
        job = Job(lane.stage, worker, *fields)
        if row.start is not None:
            job.start_time, job.starts = row.start, clock.here(row.start)
        lane.add(job)
        got[lane] = count + 1, None
    return got


def start(jobs: Sequence[Job]) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that moves claimed jobs to their stage's in-progress status."""
    return SQL["jobs_start_if_held"], {
        **fence(jobs),
        "lock_ms": round(1000 * LOCK_WAIT),
        "actor": actor(jobs[0].owner),
        "versions": array(job.version for job in jobs),
        "statuses": text_array(job.stage.running for job in jobs),
    }


def release_unknown(worker: int, known: Sequence[str], age: float) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that releases jobs claimed `age` seconds ago that never reached this process."""
    return SQL["jobs_give_back_unknown"], {"worker": worker, "known": array(known), "age": age}
