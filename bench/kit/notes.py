"""Holds what a worker notes about itself: in memory while it runs, and in a file when it has stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Notes:
    """Claims and commits, noted when they were answered. Times are by the machine's clock, in seconds."""

    claims: list[tuple[float, float, int]] = field(default_factory=list)
    """For each claim: when it was answered, how many ms it took, and how many jobs it returned."""

    steps: list[tuple[float, int]] = field(default_factory=list)
    """For each COMMIT: when it was answered, and how many steps it made."""

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Notes:
        return cls(**json.loads(file.read_text()))
