"""Handles the child processes that a handler forks, such as those of multiprocessing.

A child inherits its parent's signal handlers, event loop and connections, and must not use them. Signals end the child
itself. A child that returns from the handler, as its parent does, ends at once, before it writes to the parent's
sockets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections import Counter, deque
from contextlib import suppress

log = logging.getLogger("outbox.process")

RETURNED = 70
"""Exit code of a child that has returned from a handler (EX_SOFTWARE): only the parent may go on."""

_serving: Counter[asyncio.AbstractEventLoop] = Counter()  # how many services run in each
_heard: set[int] = set()
_masks: dict[int, set[signal.Signals | int]] = {}
_forked = False


def serve(loop: asyncio.AbstractEventLoop) -> None:
    """Guards this loop, which runs a service: children forked from now on leave it alone."""
    global _forked
    _forked = False
    _serving[loop] += 1


def end_serving(loop: asyncio.AbstractEventLoop) -> None:
    """Forgets a loop when its last service has ended."""
    _serving[loop] -= 1
    if _serving[loop] <= 0:
        del _serving[loop]


def hear(number: int) -> None:
    """Makes a signal that this process handles end its children, as it would by default."""
    _heard.add(number)


def leave_if_forked() -> None:
    """Ends this process if it is a child that a handler has forked, and has returned from the handler."""
    if _forked:
        _leave()


def _before() -> None:
    """Blocks signals until the child has dropped our handlers: Python forgets signals that arrive earlier."""
    if _heard:
        _masks[threading.get_ident()] = set(signal.pthread_sigmask(signal.SIG_BLOCK, _heard))


def _after() -> None:
    if (mask := _masks.pop(threading.get_ident(), None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    try:
        _drop()
    finally:
        _after()


def _drop() -> None:
    """Drops in a child what it inherited: the signal handlers, and the loop, in case it returns to it."""
    global _forked
    for number in _heard:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _heard.clear()
    if not _serving:
        return
    _forked = True
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)  # otherwise a signal to the child would wake the parent's loop as if it were its own
    for loop in _serving:
        # This is the first thing that the loop does after the handler, before any I/O.
        first = asyncio.Handle(_leave, (), loop)
        ready = getattr(loop, "_ready", None)
        if isinstance(ready, deque):
            ready.appendleft(first)
        else:
            loop.call_soon(_leave)
    _serving.clear()


def _leave() -> None:
    log.error("a handler forked, and returned in the child too: the child ends. End it by os._exit in the handler")
    os._exit(RETURNED)


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
