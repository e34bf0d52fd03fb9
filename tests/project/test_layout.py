"""The rooms of the tests: those of the package, and a few more; what test files share is in none of them."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tools import lowest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
OF_NO_PACKAGE = {"apps", "chaos", "doors", "examples", "faults", "kit", "project", "races"}
IN_DOORS = {"django", "mcp"}
"""The doors whose tests are in tests/doors: a room of that name would hide the library."""


def imported(file: Path) -> Iterator[str]:
    """Yields the dotted name of all that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def rooms(folder: Path) -> set[str]:
    return {file.parent.name for file in folder.glob("*/*.py")}


def test_nothing_imports_a_test_file_or_a_conftest() -> None:
    for folder in (TESTS, ROOT / "tools", ROOT / "bench"):
        for file in folder.rglob("*.py"):
            names = {part for name in imported(file) for part in name.split(".")}
            found = [name for name in names if name.startswith("test_") or name == "conftest"]
            assert found == [], file


def test_the_rooms_are_those_of_the_package_and_a_few_more() -> None:
    assert rooms(TESTS) - OF_NO_PACKAGE == rooms(ROOT / "outbox") - IN_DOORS


def test_every_dependency_has_a_lowest_version_that_is_tested_and_a_highest_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        each for extra in lowest.EXTRAS for each in project["optional-dependencies"][extra]
    ]
    assert len(lowest.lowest()) == len(wanted)
    assert [each for each in wanted if ",<" not in each] == ["tzdata>=2024.1"], "which is numbered by years"
