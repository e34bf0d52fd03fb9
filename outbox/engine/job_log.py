"""Logs why an attempt at a job has failed."""

from __future__ import annotations

import logging

from ..definition.reasons import log_with
from ..definition.step_log import names_of, stage_logger
from ..texts import printable
from .job import Failed, Job


def tell(job: Job, outcome: Failed) -> None:
    """Logs a failed attempt with its traceback: as a warning if it is retried, as an error if the job is dead."""
    where, why = f"{job.stage.queue} {printable(job.entity_id)}", printable(outcome.error)
    log, named = stage_logger(job), {**names_of(job), "retry_in": outcome.delay}
    if outcome.delay is None:
        told = "%s is dead after %s attempts: %s"
        log_with(log, logging.ERROR, outcome.raised, told, where, job.attempt, why, **named)
    else:
        told = "%s: attempt %s of %s failed, the next one comes in %.1f s: %s"
        of, delay = job.stage.retry.attempts, outcome.delay
        log_with(log, logging.WARNING, outcome.raised, told, where, job.attempt, of, delay, why, **named)
