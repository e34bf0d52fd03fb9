"""Measures what claim, commit, submit and status cost with 10 million workflows, or 1,000 stages or pipelines.

`python -m bench.scale --help`
"""

from __future__ import annotations

import json
import random
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import click
import psycopg

from outbox import Pipeline
from outbox.database import statements
from outbox.database.link import PLANNING
from outbox.definition import deploy
from outbox.definition.run import Message
from outbox.engine import commit
from outbox.engine.claim import receive, request
from outbox.engine.job import Finished, Job
from outbox.engine.lane import Lane, Lanes
from outbox.operations import look

from .kit import chains, report
from .kit.alone import BATCH
from .kit.database import Server, machine, server

SIZES = (10_000, 1_000_000, 10_000_000)
MANY = (1, 10, 1_000)
METADATA = {"content": "The new release made our nightly report three times faster, thank you! #postgres"}
STAGES = 3
"""Stages of the pipeline whose tables are filled, and how many batches a cycle finishes there."""

BACKLOG = 10_000
"""Jobs that always wait where the tables are filled."""

WARM_UP = 5
"""Cycles that are not counted. During them, all statements are prepared."""

LOOK = statements.load("maintenance")["maintenance_look"]
WORKER = "INSERT INTO outbox.workers (name, stages, lease) VALUES ('bench', '{}', '1 day') RETURNING id"
CHANGE = """
    UPDATE outbox.workflow_states SET current_status = %s WHERE pipeline = 'scale' AND entity_id = %s
"""
SPREAD = """
    INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata)
    SELECT w.pipeline, w.entity_id, w.status, %(metadata)s::text::jsonb
    FROM unnest(%(pipelines)s::text[], %(entities)s::text[], %(statuses)s::text[]) AS w (pipeline, entity_id, status)
"""
BOOKS = """
    SELECT (SELECT sum(w.version) FROM outbox.workflow_states AS w) = (SELECT count(*) FROM outbox.state_changes)
       AND (SELECT count(*) FROM outbox.jobs) = (
           SELECT count(*) FROM outbox.workflow_states AS w
           JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status AND r.stage IS NOT NULL)
       AND NOT EXISTS (
           (SELECT w.pipeline, w.current_status, count(*) FROM outbox.workflow_states AS w GROUP BY 1, 2)
           EXCEPT
           (SELECT c.pipeline, c.status, sum(c.workflows) FROM outbox.status_counts AS c GROUP BY 1, 2))
"""

Samples = dict[str, list[float]]
"""For each operation, the ms that each run of it took."""


class Client(ABC):
    """Does what a submitter, a worker and a viewer do, with the engine's own statements, and measures the time."""

    def __init__(self, dsn: str, pipelines: Sequence[Pipeline[Any]], leaving: ExitStack) -> None:
        self._conn, self._engine = (leaving.enter_context(psycopg.connect(dsn, autocommit=True)) for _ in range(2))
        for name, value in PLANNING.items():
            self._engine.execute("SELECT set_config(%s, %s, false)", (name, value))
        self._pipelines = pipelines
        self._lanes = Lanes.of(pipelines, None, None)
        self._numbers = count(1)
        (self._worker,) = self._conn.execute(WORKER).fetchone() or (0,)
        self.samples: Samples = {}

    @abstractmethod
    def cycle(self) -> None:
        """Does each operation once or a few times."""

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.samples.setdefault(operation, []).append((time.monotonic() - started) * 1000)

    def _entity(self) -> str:
        return f"post_{next(self._numbers)}"

    def _submit(self) -> Pipeline[Any]:
        """Submits a batch to one pipeline: one workflow, then the others, each time with a COMMIT."""
        pipeline = random.choice(self._pipelines)
        entity, others = self._entity(), [(self._entity(), METADATA) for _ in range(BATCH - 1)]
        with self._timed("submit 1"):
            pipeline.submit(self._conn, entity, METADATA)
        with self._timed(f"submit {BATCH - 1}"):
            pipeline.submit_many(self._conn, others)
        return pipeline

    def _spread(self, workflows: int) -> None:
        """Starts workflows in random stages of all pipelines, by plain INSERT."""
        stages = random.choices([lane.stage for lane in self._lanes.values()], k=workflows)
        columns = {
            "pipelines": [stage.pipeline for stage in stages],
            "entities": [self._entity() for _ in stages],
            "statuses": [min(stage.on) for stage in stages],
        }
        self._conn.execute(SPREAD, {**columns, "metadata": json.dumps(METADATA)})

    def _claim(self, operation: str, asked: Sequence[tuple[Lane, int]]) -> list[Job]:
        """Claims as a worker does, with low-water marks. Raises unless it gets a whole batch."""
        now = time.monotonic()
        claim = request(self._worker, asked, now, careful=True)
        with self._timed(operation):
            rows = self._ask(*claim)
        got = receive(self._worker, self._lanes, rows)
        for (lane, size), mark in zip(asked, claim[1]["marks"], strict=True):
            lane.scan.found(mark, size, got.get(lane, []), self.samples[operation][-1] / 1000)
        jobs = [job for lane in self._lanes.values() for job in lane.drop_waiting()]
        if len(jobs) != BATCH:
            raise click.ClickException(f"a claim brought {len(jobs)} jobs, not {BATCH}")
        return jobs

    def _commit(self, operation: str, jobs: Sequence[Job], to: Callable[[Job], str]) -> None:
        """Finishes a batch with a message for each job. Raises unless all jobs were held."""
        finish = commit.finish([(job, Finished(to(job), None, [message(job)])) for job in jobs])
        with self._timed(operation):
            rows = self._ask(*finish)
        if len(rows) != len(jobs):
            raise click.ClickException(f"of {len(jobs)} jobs {len(rows)} were held")

    def _look(self) -> None:
        """Runs the queries of `outbox status`, and the one that an idle worker runs every second."""
        with self._timed("status"):
            look.status(self._conn)
        stages = [lane.stage for lane in self._lanes.values()]
        pipelines, names = [stage.pipeline for stage in stages], [stage.name for stage in stages]
        with self._timed("look of an idle worker"):
            self._ask(LOOK, {"now": None, "everything": True, "pipelines": pipelines, "stages": names})

    def _ask(self, statement: bytes, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        return self._engine.execute(statement, params, prepare=True).fetchall()

    def fold(self) -> None:
        chains.fold(self._conn)

    def check_books(self) -> None:
        """Raises unless history, jobs and counts match the workflows."""
        (right,) = self._conn.execute(BOOKS).fetchone() or (False,)
        if right is not True:
            raise click.ClickException("the books are wrong: history, jobs or counts don't fit the workflows")


class Filled(Client):
    """A client of a pipeline that many workflows have passed through. A cycle leaves the backlog unchanged."""

    def __init__(self, dsn: str, resting: int, leaving: ExitStack) -> None:
        pipeline = chains.chain("scale", STAGES)
        with psycopg.connect(dsn, autocommit=True) as conn:
            deploy.deploy(conn, pipeline)
            chains.fill(conn, pipeline, resting, json.dumps(METADATA))
        super().__init__(dsn, [pipeline], leaving)
        self._resting = resting
        self._spread(BACKLOG)

    def cycle(self) -> None:
        self._submit()
        # The same number for each stage, so that as many jobs reach it as leave it.
        sizes = [BATCH // STAGES + (number < BATCH % STAGES) for number in range(STAGES)]
        (pipeline,) = self._pipelines
        for _ in range(STAGES):
            jobs = self._claim(f"claim {BATCH}", list(zip(self._lanes.values(), sizes, strict=True)))
            self._commit(f"commit {BATCH}", jobs, lambda job: chains.next_status(pipeline, job.status))
        waiting = f"rest_{random.randrange(chains.WAITING_SHARE, self._resting + 1, chains.WAITING_SHARE)}"
        with self._timed("change 1 that has rested, by hand"):
            self._conn.execute(CHANGE, (chains.status(0), waiting))
        self._conn.execute(CHANGE, (chains.WAITING, waiting))  # moved back, because it may be chosen again
        self._look()


class Shaped(Client):
    """A client of many stages or pipelines. A cycle leaves no jobs behind."""

    def __init__(self, dsn: str, pipelines: int, stages: int, leaving: ExitStack) -> None:
        made = [chains.chain(f"scale_{number}", stages) for number in range(pipelines)]
        with psycopg.connect(dsn, autocommit=True) as conn:
            for pipeline in made:
                deploy.deploy(conn, pipeline)
        super().__init__(dsn, made, leaving)

    def cycle(self) -> None:
        lane = self._lanes[self._submit().name, "stage_0"]
        jobs = self._claim(f"claim {BATCH} of one stage", [(lane, BATCH)])
        self._commit(f"commit {BATCH} of one stage", jobs, lambda job: chains.END)
        self._spread(BATCH)
        jobs = self._claim(f"claim {BATCH} of all stages", [(lane, BATCH) for lane in self._lanes.values()])
        self._commit(f"commit {BATCH} of all stages", jobs, lambda job: chains.END)
        self._look()


@click.command()
@click.option("--size", "sizes", multiple=True, type=click.IntRange(chains.WAITING_SHARE), default=SIZES,
              show_default=True, help="Workflows in the table; for several sizes, several times.")  # fmt: skip
@click.option("--many", multiple=True, type=click.IntRange(1), default=MANY,
              show_default=True, help="Stages, and pipelines; several times, too.")  # fmt: skip
@click.option("--cycles", default=50, show_default=True, help="Turns of each operation in a round.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; the figures are medians over their medians.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
@report.svg_option
def main(
    sizes: Sequence[int], many: Sequence[int], cycles: int, rounds: int, json_file: Path | None, svg_file: Path | None
) -> None:
    """Measure with tables of each size side by side, then with stages and pipelines of each number side by side."""
    with server() as postgres:
        with ExitStack() as leaving:
            filled = {}
            for size in sorted(set(sizes)):
                report.progress(f"{size:,} workflows are made")
                dsn = leaving.enter_context(postgres.database())
                filled[f"{size:,} workflows"] = Filled(dsn, size, leaving)
            figures = measured(postgres, filled, cycles, rounds)
        with ExitStack() as leaving:
            shaped = {}
            for number in sorted(set(many)):
                shapes = {f"{number:,} stages": (1, number), f"{number:,} pipelines": (number, 1)}
                for name, (pipelines, stages) in (shapes if number > 1 else {"1 stage": (1, 1)}).items():
                    dsn = leaving.enter_context(postgres.database())
                    shaped[name] = Shaped(dsn, pipelines, stages, leaving)
            figures |= measured(postgres, shaped, cycles, rounds)
        where = machine(postgres.dsn)
    settings = {"batch": BATCH, "backlog": BACKLOG, "cycles": cycles, "rounds": rounds}
    report.show("scale", settings, figures, where, json_file, svg_file)


def measured(postgres: Server, clients: Mapping[str, Client], cycles: int, rounds: int) -> dict[str, dict[str, float]]:
    """Runs the cycles of all clients in turn. Returns the ms of each operation, and how they compare."""
    for client in clients.values():
        for _ in range(WARM_UP):
            client.cycle()
    postgres.checkpoint()
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(1, rounds + 1):
        report.progress(f"round {number} of {rounds}: {', '.join(clients)}")
        for client in clients.values():
            client.samples = {}
            client.fold()
        for _ in range(cycles):
            for client in clients.values():
                client.cycle()
        for name, client in clients.items():
            for operation, took in client.samples.items():
                found.setdefault(operation, {}).setdefault(name, []).append(statistics.median(took))
    for client in clients.values():
        client.check_books()
    figures = {
        f"{operation}: {name}, ms": report.spread(took)
        for operation, by_name in found.items()
        for name, took in by_name.items()
    }
    return figures | compared(found)


def compared(found: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    """Returns the time of claim plus commit as a multiple of the first client's in the same round."""
    figures = {}
    for claim, claims in found.items():
        if claim.startswith("claim"):
            what = claim.removeprefix("claim")
            both = {n: [*map(sum, zip(claims[n], found[f"commit{what}"][n], strict=True))] for n in claims}
            first, *others = both
            for name in others:
                ratios = [mine / least for mine, least in zip(both[name], both[first], strict=True)]
                figures[f"claim and commit{what}: {name} : {first}"] = report.spread(ratios)
    return figures


def message(job: Job) -> Message:
    return Message("posts.done", job.entity_id, json.dumps({"entity_id": job.entity_id}), None)


if __name__ == "__main__":
    main()
