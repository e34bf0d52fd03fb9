"""The bench runs, and its own check of the books with it. What it measures here means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_throughput_bench_measures_all_its_subjects_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.throughput", "--jobs", "800", "--rounds", "1", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    assert len(document["figures"]) == 5
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert document["machine"]["postgres"]["fsync"] == "on"
    assert "one process" in done.stdout
