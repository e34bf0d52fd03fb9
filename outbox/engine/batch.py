"""Holds outcomes that are committed together: as many as one statement takes, and one for each workflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from .job import Failed, Finished, Job

BATCH = 200
"""Most outcomes that one statement commits. A larger batch holds its locks for longer and gains nothing."""

BATCH_SIZE = 64 * 2**20
"""Characters of JSON in a batch, not counting its first outcome: Postgres closes the connection at 1 GB a statement."""


@dataclass(slots=True)
class Batch:
    """Outcomes that wait for their commit or are committed together."""

    finished: list[tuple[Job, Finished]] = field(default_factory=list)
    failed: list[tuple[Job, Failed]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.finished) + len(self.failed)

    @property
    def jobs(self) -> list[Job]:
        return [*(job for job, _ in self.finished), *(job for job, _ in self.failed)]

    def take(self) -> Batch:
        """Takes out as many finished and as many failed outcomes as one statement commits."""
        finished, self.finished = _one_a_workflow(self.finished, _fitting(self.finished))
        failed, self.failed = _one_a_workflow(self.failed, BATCH)
        return Batch(finished, failed)


Queued = TypeVar("Queued", tuple[Job, Finished], tuple[Job, Failed])


def _one_a_workflow(queue: list[Queued], count: int) -> tuple[list[Queued], list[Queued]]:
    """Returns the next batch, of at most `count`, and the rest.

    A batch holds one attempt of each workflow, because answers and messages are matched by workflow. There are two
    attempts when someone changed the status while a handler ran, and it ends together with the next stage's handler.
    """
    batch, rest = queue[:count], queue[count:]
    first = {item[0].workflow_id: item for item in reversed(batch)}
    if len(first) < len(batch):
        rest = [item for item in batch if first[item[0].workflow_id] is not item] + rest
        batch = [item for item in batch if first[item[0].workflow_id] is item]
    return batch, rest


def _fitting(finished: Sequence[tuple[Job, Finished]]) -> int:
    """Returns how many of these outcomes one statement takes."""
    size = 0
    for count, (_, outcome) in enumerate(finished[:BATCH]):
        size += outcome.size
        if size > BATCH_SIZE and count:
            return count
    return min(BATCH, len(finished))
