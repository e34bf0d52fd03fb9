"""Finds the line of the user's code where an exception was raised, or where a thread is blocked."""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).parents[1]) + "/"
_DEMO = _PACKAGE + "demo/"  # installed with this package, and an application like any other
_CALLERS = tuple(f"{_PACKAGE}{room}/" for room in ("engine", "messages"))  # they call the user's functions
_STDLIB = tuple({sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib")})
_INSTALLED = ("/site-packages/", "/dist-packages/")

_MADE = re.compile(r"<\w+ generated |.*\.pyx$")
"""Files that code made by a library says to be in: SQLAlchemy's and attrs' generated functions, and what was Cython."""

_PYTHON = "python"
"""Stands for Python's own files and those that are in no folder, where other files have the name of their library."""

Step = tuple[FrameType, int]
"""A frame and its line number."""


def is_ours(file: str) -> bool:
    """Returns whether a file belongs to this package."""
    return file.startswith(_PACKAGE) and not file.startswith(_DEMO)


def place_in(steps: Sequence[Step]) -> str:
    """Returns the last line of the user's own code, such as "posts.py:31 in enrich". Needs at least one step."""
    owners = [_library(frame.f_code.co_filename) for frame, _ in steps]
    # An application may be installed like a library: then it is the library that the first frame belongs to.
    home = None if None in owners else next((owner for owner in owners if owner != _PYTHON), _PYTHON)
    frame, line = [step for step, owner in zip(steps, owners, strict=True) if owner == home][-1]
    code = frame.f_code
    return f"{code.co_filename.rsplit('/', 1)[-1]}:{line} in {code.co_name}"


def place_of(thread: int | None) -> str | None:
    """Returns where a thread is, preferably in the user's code; None if there is no such thread."""
    frame = sys._current_frames().get(thread or 0)
    if frame is None:
        return None
    steps = list(traceback.walk_stack(frame))[::-1]
    called = [number for number, (each, _) in enumerate(steps) if each.f_code.co_filename.startswith(_CALLERS)]
    users = [step for step in steps[called[-1] + 1 if called else 0 :] if not is_ours(step[0].f_code.co_filename)]
    return place_in(users or steps[-1:])


def _library(file: str) -> str | None:
    """Returns the library that a file belongs to; None if it is the user's own file."""
    for folder in _INSTALLED:
        if folder in file:
            return file.rpartition(folder)[2].partition("/")[0]
    if file.startswith(("<frozen ", *_STDLIB)) or _MADE.match(file):
        return _PYTHON
    return None
