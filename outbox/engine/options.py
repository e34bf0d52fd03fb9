"""The options of a Worker, for functions that pass them on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

from ..database.given import AnyDsn
from ..definition.failed_attempts import OnError
from ..definition.hooks import Around
from ..definition.lifespan import Lifespan
from .retention import Retention


class WorkerOptions(TypedDict, total=False):
    """What `Worker` takes besides its pipelines and its DSN; but not `drain`, which the function sets."""

    stages: Sequence[str] | None
    concurrency: int | None
    listen_dsn: AnyDsn | None
    lease: float
    grace: float
    notify: bool
    retention: Retention | None
    release: str | None
    on_standstill: Callable[[str], None] | None
    around: Around | Iterable[Around]
    lifespan: Lifespan | None
    on_error: OnError | None
