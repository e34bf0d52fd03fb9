"""Defines what a server of MCP refuses, although the database would allow it."""

from __future__ import annotations

from ..errors import OutboxError


class OwnQuestion(OutboxError):
    """A question was to be decided in the name that has asked it, or by the server that has. Let a person decide it.

    `asked_by` is the name that has asked.
    """

    def __init__(self, asked_by: str) -> None:
        super().__init__(
            f'"{asked_by}" has asked this question, so this server may not answer it: let somebody else decide it, '
            "on the page or with `outbox decide`"
        )
        self.asked_by = asked_by
