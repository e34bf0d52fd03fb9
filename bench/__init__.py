"""Measures the engine; see README.md. It measures on the RabbitMQ of the tests (tests/kit/broker.py)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))
