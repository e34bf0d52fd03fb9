"""Times runs of an agent."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

Ran = Callable[[float, float], None]
"""Is told the seconds of a run without Outbox, and of the same run whose results are kept."""


async def seconds(run: Awaitable[object]) -> float:
    """Returns how long a run takes."""
    started = time.perf_counter()
    await run
    return time.perf_counter() - started
