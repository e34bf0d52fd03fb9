"""The command line of the engine, as chaos starts it: with the mutant that CHAOS_MUTANT names, if it names one."""

from __future__ import annotations

import os

from outbox.cli import main


def become() -> None:
    """Break this process as it is told to."""
    if name := os.environ.get("CHAOS_MUTANT"):
        from .mutants import MUTANTS

        MUTANTS[name].patch()


if __name__ == "__main__":
    become()
    main()
