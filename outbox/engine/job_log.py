"""Writes the log of one job: its handler's lines, and why an attempt has failed."""

from __future__ import annotations

import logging
from typing import Any

from ..definition.reasons import log_with
from ..texts import printable
from .job import Failed, Job


def logger_of(job: Job) -> logging.LoggerAdapter[logging.Logger]:
    """Returns the logger of a job's stage. Each line names the pipeline, the stage, the entity and the attempt."""
    return _JobLogger(_logger(job), _named(job))


def tell(job: Job, outcome: Failed) -> None:
    """Logs a failed attempt with its traceback: as a warning if it is retried, as an error if the job is dead."""
    where, why = f"{job.stage.queue} {printable(job.entity_id)}", printable(outcome.error)
    log, named = _logger(job), {**_named(job), "retry_in": outcome.delay}
    if outcome.delay is None:
        told = "%s is dead after %s attempts: %s"
        log_with(log, logging.ERROR, outcome.raised, told, where, job.attempt, why, **named)
    else:
        told = "%s: attempt %s of %s failed, the next one comes in %.1f s: %s"
        of, delay = job.stage.retry.attempts, outcome.delay
        log_with(log, logging.WARNING, outcome.raised, told, where, job.attempt, of, delay, why, **named)


def _logger(job: Job) -> logging.Logger:
    return logging.getLogger(f"outbox.stage.{job.stage.pipeline}.{job.stage.name}")


def _named(job: Job) -> dict[str, Any]:
    return {"pipeline": job.stage.pipeline, "stage": job.stage.name, "entity": job.entity_id, "attempt": job.attempt}


class _JobLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        extra = dict(self.extra or {})
        kwargs["extra"] = {**extra, **kwargs.get("extra", {})}
        where = f"{extra['pipeline']}.{extra['stage']} {printable(extra['entity'])} #{extra['attempt']}"
        return f"{where}: {msg}", kwargs
