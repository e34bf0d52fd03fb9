"""Defines the data of a reaction, which runs after a change of a status and is not a step of the workflow."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel


class Change(BaseModel):
    """A change of a workflow's status, as a reaction gets it. `data` is the workflow's data at the change."""

    pipeline: str
    entity_id: str
    workflow_id: UUID
    from_status: str | None
    status: str
    version: int
    actor: str
    reason: str | None
    at: datetime
    data: Any
