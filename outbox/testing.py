"""For tests of applications: run what is due, here and now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from .definition.pipeline import Pipeline
from .engine.worker import Worker


def drain(pipelines: Pipeline[Any] | Iterable[Pipeline[Any]], dsn: str, **options: Any) -> Worker:
    """Run everything that is due in this process, and return the worker, whose `counts` say what became of it.

    Jobs that are scheduled for later (back-off, Retry) are left. `options` are those of Worker.
    """
    return asyncio.run(drain_async(pipelines, dsn, **options))


async def drain_async(pipelines: Pipeline[Any] | Iterable[Pipeline[Any]], dsn: str, **options: Any) -> Worker:
    """The same from a running event loop."""
    worker = Worker(pipelines, dsn, drain=True, **options)
    await worker.run()
    return worker
