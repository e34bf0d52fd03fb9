"""Runs the agent in a handler of Outbox, with a write tool that is no effect: what happens if that is forgotten."""

from __future__ import annotations

from functools import partial

from .agent import run
from .outbox import main

if __name__ == "__main__":
    run(partial(main, of_write=None))
