"""Finds Node, and installs what the example in Node needs, once, into build/node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "node"
MODULES = ROOT / "build" / "node"


def program() -> Path | None:
    """Returns where Node is. None unless npm is there as well."""
    found = shutil.which("node") if shutil.which("npm") else None
    return Path(found) if found else None


def modules() -> Path:
    """Returns the folder of the modules that the example needs. npm installs them the first time."""
    wanted = (EXAMPLE / "package-lock.json").read_bytes()
    lock = MODULES / "package-lock.json"
    if not ((MODULES / "node_modules" / "pg").is_dir() and lock.is_file() and lock.read_bytes() == wanted):
        shutil.rmtree(MODULES, ignore_errors=True)
        shutil.copytree(EXAMPLE, MODULES, ignore=shutil.ignore_patterns("node_modules"))
        done = subprocess.run(["npm", "ci", "--silent"], cwd=MODULES, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(MODULES, ignore_errors=True)
            raise AssertionError(
                f"npm can't install pg (NODE=skip leaves out what needs Node): {done.stdout}{done.stderr}"
            )
    return MODULES / "node_modules"
