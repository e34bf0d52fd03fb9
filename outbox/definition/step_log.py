"""The logger of a step: each line names the pipeline, the stage, the entity and the attempt."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from ..texts import printable
from .stage import Stage


class Step(Protocol):
    """The part of a claimed job that names it in the log."""

    @property
    def stage(self) -> Stage: ...
    @property
    def entity_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...


def logger_of(step: Step) -> logging.LoggerAdapter[logging.Logger]:
    """Returns the logger of a job's stage, for what its handler says."""
    return _StepLogger(stage_logger(step), names_of(step))


def stage_logger(step: Step) -> logging.Logger:
    """Returns the logger that is named after the stage: `outbox.stage.posts.enrich`."""
    return logging.getLogger(f"outbox.stage.{step.stage.pipeline}.{step.stage.name}")


def names_of(step: Step) -> dict[str, Any]:
    """Returns the fields that each line of the log has."""
    return {
        "pipeline": step.stage.pipeline, "stage": step.stage.name, "entity": step.entity_id, "attempt": step.attempt
    }  # fmt: skip


class _StepLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        extra = dict(self.extra or {})
        kwargs["extra"] = {**extra, **kwargs.get("extra", {})}
        where = f"{extra['pipeline']}.{extra['stage']} {printable(extra['entity'])} #{extra['attempt']}"
        return f"{where}: {msg}", kwargs
