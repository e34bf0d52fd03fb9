"""What a worker notes of itself while it works: in memory, and in a file when it has been stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Notes:
    """Claims and commits as they were answered. Times are of the machine's clock, in seconds."""

    claims: list[tuple[float, float, int]] = field(default_factory=list)
    """When it was answered, how many ms it took, how many jobs came."""

    steps: list[tuple[float, int]] = field(default_factory=list)
    """When a COMMIT was answered, and of how many steps."""

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Notes:
        return cls(**json.loads(file.read_text()))
