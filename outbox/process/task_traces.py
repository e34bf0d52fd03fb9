"""Tells whether what ran in a task has left it as it was, so that something else may run in it."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import weakref
from typing import Any


def current() -> asyncio.Task[Any]:
    """Returns the task that this runs in."""
    task = asyncio.current_task()
    assert task is not None
    return task


def traces(task: asyncio.Task[Any]) -> tuple[object, ...]:
    """Returns what code that runs in a task may leave in it, to be compared by `differ`.

    These are context variables; who knows the task, as a registry does that keeps a session for each; requests to
    cancel it; and functions to be called when it is done.
    """
    return (
        contextvars.copy_context(),
        sys.getrefcount(task),
        weakref.getweakrefcount(task),
        task.cancelling(),
        bool(getattr(task, "_callbacks", None)),
    )


def differ(before: tuple[object, ...], now: tuple[object, ...]) -> bool:
    """Returns whether something was left in a task between two looks at its traces."""
    try:
        return before != now
    except Exception:  # a context variable has a value that can't be compared
        return True
