"""Type checkers find the errors that users make, and nothing else: mypy and pyright, both strict."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import outbox
from outbox import Worker
from outbox.engine.options import WorkerOptions

HERE = Path(__file__).parent
WHERE = Path(outbox.__file__).parents[1]
PAGES = ("types_planted.py", "types_right.py")
Found = dict[str, dict[int, str]]


def planted(page: str) -> set[int]:
    lines = (HERE / page).read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# planted")}


def by_mypy(folder: Path) -> Found:
    """Returns what mypy finds: by page, the lines with the first message of each."""
    # Its cache is kept beside that of `make check`, which has the same packages.
    options = ["--strict", "--no-error-summary", "--hide-error-context", "--cache-dir", str(HERE.parents[1] / ".mypy_cache" / "types"),
               "--config-file", str(folder / "mypy.ini")]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *PAGES], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr + done.stdout
    found: Found = {page: {} for page in PAGES}
    for page, line, message in re.findall(r"^(\w+\.py):(\d+): error: (.*)$", done.stdout, re.MULTILINE):
        found[page].setdefault(int(line), message)
    return found


def by_pyright(folder: Path) -> Found:
    """Returns what pyright finds, in the same way."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable], cwd=folder,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["summary"]["filesAnalyzed"] == len(PAGES), done.stdout
    found: Found = {page: {} for page in PAGES}
    for each in told["generalDiagnostics"]:
        found[Path(each["file"]).name].setdefault(each["range"]["start"]["line"] + 1, each["message"])
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    folder = tmp_path_factory.mktemp("types")
    for page in PAGES:
        shutil.copy(HERE / page, folder)
    (folder / "mypy.ini").write_text(f"[mypy]\nmypy_path = {WHERE}\npython_executable = {sys.executable}\n")
    (folder / "pyrightconfig.json").write_text(
        json.dumps({"include": ["."], "extraPaths": [str(WHERE)], "typeCheckingMode": "strict"})
    )
    with ThreadPoolExecutor(2) as threads:
        checks = {"mypy": threads.submit(by_mypy, folder), "pyright": threads.submit(by_pyright, folder)}
        return {name: check.result() for name, check in checks.items()}


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_every_planted_error_is_found_and_no_other(found: dict[str, Found], checker: str) -> None:
    told = found[checker]["types_planted.py"]
    assert sorted(planted("types_planted.py") - told.keys()) == [], "not found"
    assert {line: told[line] for line in told.keys() - planted("types_planted.py")} == {}


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_what_is_right_has_no_error(found: dict[str, Found], checker: str) -> None:
    assert found[checker]["types_right.py"] == {}


def test_the_options_that_are_passed_on_are_those_of_a_worker() -> None:
    parameters = inspect.signature(Worker).parameters
    assert set(WorkerOptions.__annotations__) == set(parameters) - {"pipelines", "dsn", "drain"}
