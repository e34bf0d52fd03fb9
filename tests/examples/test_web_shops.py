"""examples/fastapi_shop (on asyncpg and on psycopg) and examples/flask_shop: their own tests pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("driver", "shops", "passed"), [("asyncpg", ["fastapi_shop", "flask_shop"], 6), ("psycopg", ["fastapi_shop"], 3)]
)
def test_their_tests_pass(admin_dsn: str, driver: str, shops: list[str], passed: int) -> None:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "OUTBOX_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(f"examples/{shop}" for shop in shops)],
        cwd=ROOT, env={**kept, "OUTBOX_TEST_DSN": admin_dsn, "SHOP_DRIVER": driver},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert f"{passed} passed" in done.stdout
