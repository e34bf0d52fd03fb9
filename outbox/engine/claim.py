"""How jobs are taken in the database: the statements of a claim, and the jobs that their rows become.

A stage with limits has statements of its own. See sql/queries/claim.sql.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..database import statements
from ..database.statements import array, text_array
from .job import Job, actor, fence
from .lane import Lane
from .pacing import AHEAD, SLACK, ServerClock

SQL = statements.load("claim")


def request(
    worker: int, lanes: Sequence[tuple[Lane, int]], now: float, *, careful: bool
) -> tuple[bytes, dict[str, Any]]:
    """Return the statement that claims `n` jobs for each lane, and with `careful` one such job in all."""
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
    """Put claimed rows into their lanes; return the ids that each lane got."""
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
    """The same for lanes whose stages are limited. `lead`: seconds that moments take to arrive here."""
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
    """Put claimed rows into their lanes; return how many each lane got, and in how many seconds it may have more."""
    got: dict[Lane, tuple[int, float | None]] = {}
    ends = [row for row in rows if row[2] is None]
    received = time.monotonic()
    if ends:
        clock.note(sent, ends[0][-2], ends[-1][-1], received)
    if moments := [row[-3] for row in rows if row[2] is not None and row[-3] is not None]:
        clock.arrived(min(moments), received)
    for pipeline, stage, *fields, moment, _, _ in rows:
        lane = lanes[pipeline, stage]
        if fields[0] is None:
            got[lane] = got.get(lane, (0, None))[0], moment
            continue
        job = Job(lane.stage, worker, *fields)
        if moment is not None:
            job.moment, job.begins = moment, clock.here(moment)
        lane.add(job)
        got[lane] = got.get(lane, (0, None))[0] + 1, None
    return got


def start(jobs: Sequence[Job]) -> tuple[bytes, dict[str, Any]]:
    """Return the statement that moves claimed jobs to their stage's in-progress status."""
    return SQL["jobs_start_if_held"], {
        **fence(jobs),
        "actor": actor(jobs[0].owner),
        "versions": array(job.version for job in jobs),
        "statuses": text_array(job.stage.running for job in jobs),
    }


def release_unknown(worker: int, known: Sequence[str], age: float) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that releases what was claimed `age` seconds ago and never reached this process."""
    return SQL["jobs_give_back_unknown"], {"worker": worker, "known": array(known), "age": age}
