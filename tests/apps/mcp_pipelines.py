"""Pipelines that are offered as tools by MCP, in a module that prints while it is imported and when it is used."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, Field, field_validator

from outbox import Go, Pipeline, Reject, Run, WaitForApproval

print("this module prints when it is imported")
os.write(1, b"and writes to the descriptor\n")


class Draft(BaseModel):
    """Writes a draft on a topic."""

    topic: str = Field(description="What it is about.")
    words: int = Field(default=10, ge=1)
    text: str | None = None

    @field_validator("topic")
    @classmethod
    def _prints(cls, topic: str) -> str:
        print("a validator prints")
        return topic


drafts: Pipeline[Any] = Pipeline("drafts", data=Draft, initial="NEW", final={"DONE", "REFUSED"})


@drafts.stage("write", on="NEW", to={"WRITTEN", "ASKED"})
async def write(run: Run[Draft]) -> Any:
    if run.data.topic == "nothing":
        raise Reject("there is nothing to write about")
    data = run.data.model_copy(update={"text": f"{run.data.topic} " * run.data.words})
    if run.data.topic == "risky":
        return WaitForApproval(
            "Keep it?", status="ASKED", options={"approve": "WRITTEN", "reject": "REFUSED"}, data=data
        )
    return Go("WRITTEN", data)


@drafts.stage("finish", on="WRITTEN", to="DONE")
async def finish(run: Run[Draft]) -> None:
    return None


drafts.allow("ASKED", to={"WRITTEN", "REFUSED"})
