"""Runs a worker: claims jobs of its stages, calls their handlers and commits the outcomes, until it is told to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ..checks import check_number
from ..database.given import AnyDsn, both
from ..database.link import Link
from ..definition import hooks
from ..definition.failed_attempts import OnError
from ..definition.hooks import Around
from ..definition.lifespan import Lifespan
from ..definition.pipeline import Pipeline
from ..process.embedding import Embedded, Signs
from ..process.service import Service
from .inflight import Counts
from .lane import Lanes, with_reactions
from .lease import release_of
from .retention import Retention
from .shift import Shift, Terms
from .surroundings import Surroundings

log = logging.getLogger("outbox.worker")


class Worker(Embedded):
    """Runs the stages of pipelines until `stop`. Any number of workers share the work.

    `stages` limits it to some ("enrich" or "posts.enrich"; default: all). `concurrency` is how many attempts run at
    once for each stage in this process; a stage's own `concurrency` holds across all workers. `lease` (seconds) is how
    long a frozen or cut-off process keeps its jobs; a killed process loses them in about a second. `grace` (seconds) is
    how long running handlers may take after `stop`. `listen_dsn` is a direct DSN when `dsn` goes through a pooler.
    `drain` ends the run when nothing is due. `notify=False` polls only. `on_standstill`, if given, is called in a
    thread with the reason when a handler has blocked the event loop for too long; see docs/handlers.md. `around`
    and `on_error` are for all its pipelines, beside their own, and `lifespan` is instead of theirs; see Pipeline.
    `release` (default: OUTBOX_RELEASE) names the release of the application in `outbox status`.

    `counts` tells how the attempts have ended, and `interrupted` how many handlers were still running at the end of the
    grace time. `left` names handlers that go on after `run` has returned, because they can't be interrupted.
    """

    _link: Callable[..., Link] = Link

    def __init__(
        self,
        pipelines: Pipeline[Any] | Iterable[Pipeline[Any]],
        dsn: AnyDsn,
        *,
        stages: Sequence[str] | None = None,
        concurrency: int | None = None,
        listen_dsn: AnyDsn | None = None,
        lease: float = 30.0,
        grace: float = 30.0,
        drain: bool = False,
        notify: bool = True,
        retention: Retention | None = None,
        release: str | None = None,
        on_standstill: Callable[[str], None] | None = None,
        around: Around | Iterable[Around] = (),
        lifespan: Lifespan | None = None,
        on_error: OnError | None = None,
    ) -> None:
        check_number(lease, "lease", 0.5, 86_400)
        check_number(grace, "grace", 0, 86_400)
        check_number(concurrency or 1, "concurrency", 1, 10_000)
        every = with_reactions(pipelines)
        surroundings = Surroundings(hooks.check("", around, lifespan, on_error))
        self._lifespans = surroundings.lifespans
        self._make_lanes = partial(Lanes.of, every, stages, concurrency, surroundings.stage)
        self._make_lanes()  # which raises now what is wrong with the stages
        # A worker for some stages leaves the schedules to workers that run all stages.
        schedules = [surroundings.schedule(each) for p in every for each in p.schedules.values() if stages is None]
        self._terms = Terms(
            every, schedules, *both(dsn, listen_dsn), lease, grace, drain, notify, retention or Retention(),
            on_standstill, release_of(release),
        )  # fmt: skip
        self._service = Service("Worker")
        self._shift: Shift | None = None
        self.counts, self.interrupted = Counts(), 0
        self.left: list[str] = []

    async def run(self) -> None:
        """Works until `stop`, or, with `drain`, until nothing is due.

        Waits for a primary first. SchemaError or NotDeployed if it isn't ready for this code. After that, nothing that
        data or a restart of Postgres does ends it. WorkerBroken when handlers that don't end have taken all slots of a
        stage. Cancelled, it cancels its handlers, and releases their jobs.
        """
        shift = Shift(self._terms, self._make_lanes(), self.counts, self._service, self._lifespans, self._link)

        async def work() -> None:
            self._shift = shift
            await shift.run()

        try:
            await self._service.run(work, *shift.closing, last=self._lifespans.close)
        finally:
            self.interrupted, self.left = shift.winding_down.interrupted, shift.left()
            if self.left:
                log.error("still running, though the worker has stopped: %s", ", ".join(self.left))

    def stop(self) -> None:
        """Stops the worker: jobs that haven't started are released at once, running ones get `grace` seconds.

        A second call stops it at once. From another thread, use `loop.call_soon_threadsafe(worker.stop)`.
        """
        self._service.stop()

    def _signs(self) -> Signs:
        return self._shift.signs() if self._shift is not None else Signs()
