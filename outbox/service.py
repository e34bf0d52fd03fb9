"""The end of tasks, for sure."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN = 1.0


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and return when each has ended, however it did.

    Python 3.11's `wait_for` loses a cancellation that meets the end of its wait: it is said again until it is heard.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=AGAIN)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # was seen: nobody need be told that it was not
