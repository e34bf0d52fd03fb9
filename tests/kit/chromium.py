"""Finds the browser that drives the web page in tests."""

from __future__ import annotations

import shutil
from pathlib import Path


def program() -> Path | None:
    """Returns where Chromium is; None if this machine doesn't have it."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return Path(found) if found else None
