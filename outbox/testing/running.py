"""Says what to call in a running event loop, and how the workers of this process call themselves."""

from __future__ import annotations

import asyncio
import os
import socket


def no_loop(instead: str) -> None:
    """Raises RuntimeError, which names what to await instead, if an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"an event loop is running in this thread: await outbox.testing.{instead}(…)")


def own_name() -> str:
    """Returns the name of this process's workers in outbox.workers."""
    return f"{socket.gethostname()}:{os.getpid()}"
