"""Tells whether what ran in a task has left it as it was, so that something else may run in it."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import weakref
from typing import Any

Traces = tuple[contextvars.Context, int, int, int, bool]


def current() -> asyncio.Task[Any]:
    """Returns the task that this runs in."""
    task = asyncio.current_task()
    assert task is not None
    return task


def traces(task: asyncio.Task[Any]) -> Traces:
    """Returns what code that has run in a task may have left in it: compare it with what it was before.

    Context variables; who knows the task, as a registry does that keeps something for each, such as a session; requests
    to cancel it; and functions to be called when it is done.
    """
    return (
        contextvars.copy_context(),
        sys.getrefcount(task),
        weakref.getweakrefcount(task),
        task.cancelling(),
        bool(getattr(task, "_callbacks", None)),
    )
