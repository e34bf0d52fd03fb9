"""Where a thread is: told of one that stands still."""

from __future__ import annotations

import sys


def place_of(thread: int | None) -> str | None:
    """Returns the place of a thread in words, such as "posts.py:31 in enrich"; None if there is no such thread."""
    frame = sys._current_frames().get(thread or 0)
    if frame is None:
        return None
    code = frame.f_code
    return f"{code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno} in {code.co_name}"
