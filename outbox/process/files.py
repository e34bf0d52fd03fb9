"""Says when a process can open no more files: what fails then names many other reasons, or none."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import ExitStack

if sys.platform != "win32":  # where the command line must still say that it doesn't run there
    import resource

_NEEDED = 3
"""Files that a connection takes while it is made."""


def no_more_files() -> str | None:
    """Returns that this process can open no more files, and what to do; None if it can."""
    with ExitStack() as opened:
        try:
            for _ in range(_NEEDED):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno == errno.ENFILE:
                return "the machine has too many open files"
            if error.errno == errno.EMFILE:
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                return f"this process has too many open files, of {limit} that it may have: see ulimit -n"
    return None
