"""Runs the quick part of the chaos tests with fixed seeds: a clean engine, and a broken one that is caught."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos import migrating, mutants
from chaos.configs import CONFIGS
from chaos.nemesis import FAULTS
from chaos.run import report, run
from kit.servers import DEADLINE

pytestmark = pytest.mark.rabbitmq


def test_a_short_run_with_faults_is_clean() -> None:
    config = next(config for config in CONFIGS if config.name == "everything")
    result = run(config, seconds=6, seed=4, rate=120, drain=2 * DEADLINE, jobs=400, faults=2)
    assert result.ok, report(result)
    assert sum(result.faults.values()) >= 2
    assert result.counts["jobs"] > 300


def test_a_mutant_is_caught() -> None:
    result, found = mutants.attempt("effect-before-status", seed=1, rate=120, seconds=6, jobs=300, faults=2)
    assert found, report(result)


APPLY = """
import os, outbox.cli
from chaos.mutants import MUTANTS
for name, mutant in MUTANTS.items():
    if not (child := os.fork()):
        mutant.patch()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_every_mutant_still_breaks_something() -> None:
    """A patch names what it replaces. If the engine has changed, it fails, and the mutant must be changed, too."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-c", APPLY]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_migration_that_is_killed_goes_on() -> None:
    assert migrating.kill(3, seed=1) == 3


def test_every_fault_is_in_a_configuration() -> None:
    used = {name for config in CONFIGS for name in config.faults}
    assert used == set(FAULTS)


def test_nothing_of_the_harness_is_in_the_package() -> None:
    package = Path(__file__).parents[2] / "outbox"
    assert [path for path in package.rglob("*.py") if "chaos" in path.read_text().lower()] == []
