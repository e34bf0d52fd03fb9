"""Runs due jobs in the calling process, for tests of applications."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from ..definition.pipeline import Pipeline
from ..engine.worker import Worker


def drain(pipelines: Pipeline[Any] | Iterable[Pipeline[Any]], dsn: str, **options: Any) -> Worker:
    """Runs everything that is due in this process, and returns the worker, whose `counts` say how the jobs ended.

    Leaves jobs that are scheduled for later (back-off, Retry). `options` are those of Worker.
    """
    return asyncio.run(drain_async(pipelines, dsn, **options))


async def drain_async(pipelines: Pipeline[Any] | Iterable[Pipeline[Any]], dsn: str, **options: Any) -> Worker:
    """Does what `drain` does, in a running event loop."""
    worker = Worker(pipelines, dsn, drain=True, **options)
    await worker.run()
    return worker
