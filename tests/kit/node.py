"""Finds Node, and installs what tests need of npm, once, into build/."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "node"
AXE = Path(__file__).parent / "axe"


def program() -> Path | None:
    """Returns where Node is. None unless npm is there as well."""
    found = shutil.which("node") if shutil.which("npm") else None
    return Path(found) if found else None


def modules() -> Path:
    """Returns the folder of the modules that the example needs."""
    return installed(EXAMPLE, "node", "pg")


def axe() -> str:
    """Returns the text of axe, which finds what keeps people from using a page."""
    return (installed(AXE, "axe", "axe-core") / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def installed(source: Path, name: str, module: str) -> Path:
    """Returns the folder of the modules that a folder's lock file names. npm installs them the first time."""
    target = ROOT / "build" / name
    wanted = (source / "package-lock.json").read_bytes()
    lock = target / "package-lock.json"
    if not ((target / "node_modules" / module).is_dir() and lock.is_file() and lock.read_bytes() == wanted):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("node_modules"))
        done = subprocess.run(["npm", "ci", "--silent"], cwd=target, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(target, ignore_errors=True)
            raise AssertionError(
                f"npm can't install {module} (NODE=skip leaves out what needs Node): {done.stdout}{done.stderr}"
            )
    return target / "node_modules"
