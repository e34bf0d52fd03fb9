"""Reads the settings of an application's session, and puts them back after a drain has worked in it."""

from __future__ import annotations

from typing import Any

from ..database import session
from ..database.statements import text_array
from ..database.steps import Statement

ENGINES = tuple(f"outbox.{name}" for name in ("actor", "reason", "worker", "claim", "waits", "decision", "early"))
"""What the engine's statements set for the triggers, until the end of a transaction."""

OWN = (
    "client_encoding",
    *session.READING,
    "search_path",
    "row_security",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
)
"""Settings that are the application's, and that the engine's statements, or a handler, change in a transaction."""


class SessionSettings:
    """What the session's settings were before, to be put back."""

    def __init__(self, rows: list[Any]) -> None:
        found = dict(rows)
        self.own = {name: value for name, value in found.items() if name in OWN}
        self.engines = {name: found.get(name) or "" for name in ENGINES}

    def put_back(self, *, own: bool = True) -> Statement:
        """Returns the statement that sets them for the rest of the transaction; without `own` only the schema's."""
        return set_local({**self.engines, **(self.own if own else {})})


def set_local(settings: dict[str, str]) -> Statement:
    """Returns the statement that sets these for the rest of the transaction."""
    names, values = text_array(settings), text_array(settings.values())
    return session.SQL["session_set"], {"names": names, "values": values, "local": True, "path": False}


READ: Statement = session.SQL["session_read"], {"names": text_array([*OWN, *ENGINES])}
READING = {"client_encoding": "UTF8", **session.READING}


def is_restore(step: Statement) -> bool:
    """Returns whether a statement puts back what a session of the engine's own begins with: this one is not."""
    return step[0] == session.SQL["session_restore"]
