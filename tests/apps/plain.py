"""The smallest application: one stage, plain data."""

from __future__ import annotations

from typing import Any

from outbox import Pipeline, Run

app = Pipeline("plain", initial="NEW", final={"DONE"})


@app.stage("work", on="NEW", to="DONE")
async def work(run: Run[dict[str, Any]]) -> None:
    run.log.info("working")
