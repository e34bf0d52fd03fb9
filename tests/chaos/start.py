"""Starts the engine's command line with the settings of the torture, and with the mutant that CHAOS_MUTANT names, if any."""

from __future__ import annotations

import os

from outbox.cli import main
from outbox.engine import apart, sharing, transaction


def become() -> None:
    """Makes this process one of the torture: with its settings, and broken by the named mutant."""
    # Seconds that a refused row is left alone: what is due when all is healed must be done soon.
    apart.LEAVE_FOR = 3.0
    # Those that share transactions do so however slow the machine is.
    sharing.FIRST, sharing.AT_ONCE, sharing.WORSE, transaction.LONGEST = 10, 1, 0.0, 60.0
    if name := os.environ.get("CHAOS_MUTANT"):
        from .mutants import MUTANTS

        MUTANTS[name].patch()


if __name__ == "__main__":
    become()
    main()
