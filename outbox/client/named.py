"""What the calls of this room ask of a pipeline: whatever has a name and checks data is one."""

from __future__ import annotations

from typing import Any, Protocol


class Named(Protocol):
    """A pipeline, as much of it as a call needs."""

    @property
    def name(self) -> str: ...

    def dump_readable(self, data: Any) -> str:
        """Return data as JSON text that the pipeline can read back; InvalidInput if it doesn't fit."""
