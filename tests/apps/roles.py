"""What the workers of tests/database/test_roles.py run: each kind of stage, in a worker that owns nothing."""

from __future__ import annotations

import os
from typing import Any

from outbox import Backoff, Pipeline, Reject, Run

app = Pipeline("parcels", initial="NEW", final={"DONE", "REFUSED"})
AGAIN = Backoff(first=0.01, attempts=3)


@app.stage("weigh", on="NEW", to="WEIGHED", running="WEIGHING", retry=AGAIN)
async def weigh(run: Run[dict[str, Any]]) -> dict[str, Any]:
    if "die" in run.entity_id and run.attempt == 1:
        os._exit(1)
    if "again" in run.entity_id and run.attempt < 3:
        raise RuntimeError("not yet")
    if "reject" in run.entity_id and "pardoned" not in run.data:
        raise Reject("too heavy")
    run.publish("parcels.weighed", {"entity_id": run.entity_id}, key=run.entity_id)
    return {**run.data, "weight": 1}


@app.stage("send", on="ALLOWED", to="DONE", transaction=True)
async def send(run: Run[dict[str, Any]]) -> None:
    await run.connection.execute("INSERT INTO sent (parcel) VALUES (%s)", (run.entity_id,))


app.allow("WEIGHED", to={"ALLOWED", "REFUSED"})
