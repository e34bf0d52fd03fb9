"""Knows the attempt in which an agent runs, and where in it: that is the key of what is kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from copy import copy
from typing import Any

from ..definition import hooks
from ..definition.run import Run, SyncRun
from ..errors import HandlerError
from .budget import Budget, Spending

_LONGEST = 200
"""The longest key, in characters, that is kept as it is. Longer ones, as of agents in tools of agents, are hashed."""

_attempt: ContextVar[Attempt | None] = ContextVar("outbox_agents_attempt", default=None)


class Attempt:
    """The attempt of a handler in which agents run, or a tool call of theirs in which other agents run.

    An agent that does the same as in the attempt before asks for the same keys, also while its tools run in parallel:
    each run of an agent has a number, and each tool call its id.
    """

    def __init__(self, run: Run[Any], spending: Spending, path: str = "", idempotency_key: str | None = None) -> None:
        self.run = run
        self.spending = spending
        self.idempotency_key = idempotency_key
        self._path = path
        self._loop = None if isinstance(run, SyncRun) else asyncio.get_running_loop()
        self._labels: dict[str, str] = {}
        self._begun: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self.sizes: dict[str, tuple[int, int]] = {}

    def begin(self, name: str = "run") -> str:
        """Returns the id of the next run of an agent: the same in each attempt at this work.

        Runs of another `name` are counted for themselves, so they may begin in any order.
        """
        self._begun[name] += 1
        label = f"{name} {self._begun[name]}"
        run_id = f"{self.run.idempotency_key}:{self._path}{label}"
        self._labels[run_id] = label
        return run_id

    def key(self, run_id: str | None, what: str) -> str:
        """Returns the key of the next `what` in a run of an agent."""
        place = self._place(run_id, what)
        self._counts[place] += 1
        return _short(f"{place} {self._counts[place]}")

    def only_key(self, run_id: str, what: str) -> str:
        """Returns the key of the only `what` in a run of an agent. It may be asked for again, after a failure."""
        return _short(self._place(run_id, what))

    def _place(self, run_id: str | None, what: str) -> str:
        return f"{self._path}{self._labels.get(run_id or '', run_id)}/{what}"

    def require_loop(self) -> None:
        """Raises HandlerError unless this is the event loop of an async handler, in which results are kept."""
        if self._loop is None:
            raise HandlerError(f"stage {self.run.stage}: an agent runs in an async handler: await agent.run(…)")
        if self._loop is not asyncio.get_running_loop():
            raise HandlerError(
                f"stage {self.run.stage}: an agent runs in the event loop of its handler: make the tool that calls it "
                "async, and await agent.run(…)"
            )

    def spending_by(self, spending: Spending) -> Attempt:
        """Returns the same attempt, in which other spending is counted."""
        same = copy(self)
        same.spending = spending
        return same

    @contextmanager
    def within(self, key: str, idempotency_key: str) -> Iterator[None]:
        """Makes what agents do inside a tool call a part of it."""
        token = _attempt.set(Attempt(self.run, self.spending, f"{key}/", idempotency_key))
        try:
            yield
        finally:
            _attempt.reset(token)


def _short(key: str) -> str:
    return key if len(key) <= _LONGEST else hashlib.sha256(key.encode()).hexdigest()


def current() -> Attempt | None:
    """Returns the attempt of the handler that runs here, or None."""
    return _attempt.get()


def idempotency_key() -> str:
    """Returns a key of the tool call that runs here, the same in every attempt: pass it to the services that it calls.

    Raises HandlerError if none runs here whose result is kept.
    """
    attempt = current()
    if attempt is None or attempt.idempotency_key is None:
        raise HandlerError("idempotency_key() is for the tools of an agent in a handler, whose results are kept")
    return attempt.idempotency_key


@contextmanager
def durable(run: Run[Any], *, budget: Budget | None = None, spent: tuple[int, int] = (0, 0)) -> Iterator[Spending]:
    """Has agents inside the block keep their results for this run, and returns what they spend.

    A handler of one run is such a block already. Use it to set a `budget`, and in a handler with `batch=`, to say
    whose run it is. `spent` are the requests and tokens that the workflow has spent before.
    """
    spending, outer = Spending(budget, *spent), _attempt.get()
    # Blocks of the same run count its agents together, so that no two of them have the same key.
    attempt = Attempt(run, spending) if outer is None or outer.run is not run else outer.spending_by(spending)
    token = _attempt.set(attempt)
    try:
        yield spending
    finally:
        _attempt.reset(token)


def everywhere() -> None:
    """Makes each handler of this process that has one run a durable block."""
    if _around not in hooks.EVERYWHERE:
        hooks.EVERYWHERE.append(_around)


def _around(given: Any) -> Any:
    return durable(given) if isinstance(given, Run) and given._job.stage.batch is None else nullcontext()
