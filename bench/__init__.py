"""Measures the engine; see README.md. The RabbitMQ that it measures on is the tests' own (tests/kit/broker.py)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))
