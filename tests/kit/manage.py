"""Runs commands of a Django project's `manage.py`, several in one process: most of the time of each is its start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_SEVERAL = """
import sys
from django.core.management import ManagementUtility
for line in sys.argv[1:]:
    if line.endswith(".py"):
        exec(open(line).read())
        continue
    try:
        ManagementUtility(["manage.py", *line.split()]).execute()
    except SystemExit as end:
        if end.code:
            raise
"""


def manage(folder: Path, settings: str, at: Mapping[str, object], *lines: str) -> str:
    """Runs the commands one after the other, and files that end in `.py`; returns what they print.

    `at` is where the database is, by the words of a DSN.
    """
    where = {f"PG{'DATABASE' if key == 'dbname' else key.upper()}": str(value) for key, value in at.items()}
    env = {**os.environ, **where, "DJANGO_SETTINGS_MODULE": settings, "PYTHONPATH": str(folder)}
    return output(folder, env, "-c", _SEVERAL, *lines)


def output(folder: Path, env: Mapping[str, str], *arguments: str) -> str:
    """Runs Python there, which must succeed, and returns what it prints."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout + done.stderr
