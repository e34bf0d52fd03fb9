"""Says what to call in a running event loop."""

from __future__ import annotations

import asyncio


def no_loop(instead: str) -> None:
    """Raises RuntimeError, which names what to await instead, if an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"an event loop is running in this thread: await outbox.testing.{instead}(…)")
