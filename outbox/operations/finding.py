"""Defines a finding of `outbox doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: what was found, how bad it is, and what to do about it."""

    level: Literal["ok", "warn", "bad"]
    what: str
    do: str = ""

    def as_row(self) -> dict[str, str]:
        return {"level": self.level, "what": self.what, "do": self.do}
