"""Dead jobs, grouped by stage and kind of error: what they died of, and that they run again."""

from __future__ import annotations

import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...client import dead as client
from ...client.execute import drive
from ...operations import look
from ..site import Conn, Site, back, form, person

BATCH = 500
"""Jobs that one transaction retries."""

PATIENCE = 5.0
"""Seconds that a request retries. Then the page says how many are left, and the person goes on, or stops."""


async def dead(site: Site, request: Request) -> Response:
    """Shows the kinds of errors, each with the number of its dead jobs."""
    pipeline = request.query_params.get("pipeline") or None
    kinds = await site.reads.panel(lambda conn: look.errors(conn, pipeline))
    totals: dict[tuple[str, str], int] = {}
    for row in kinds.value or []:
        key = (row["pipeline"], row["kind"])
        totals[key] = totals.get(key, 0) + row["jobs"]
    latest = await site.reads.panel(lambda conn: look.dead(conn, pipeline, 50))
    return site.page(
        request, "dead.html", kinds=kinds, totals=totals, latest=latest, pipeline=pipeline,
        after=request.query_params.get("after"), going=request.query_params.get("going"),
    )  # fmt: skip


async def retry(site: Site, request: Request) -> Response:
    """Retries the dead jobs of a kind of error, in batches, for a few seconds."""
    who = person(request, "operate")
    sent = await form(request)
    pipeline, kind = sent.get("pipeline") or None, sent.get("error") or None
    if pipeline is None or (kind is None and sent.get("all") != "1"):
        raise HTTPException(400, "Say which dead jobs: of which pipeline, and of which kind of error.")
    asked: dict[str, Any] = {
        "pipeline": pipeline, "error": kind, "by": who.name, "reason": sent.get("reason") or None,
    }  # fmt: skip
    done, after, until = 0, sent.get("after") or None, time.monotonic() + PATIENCE
    while True:

        def some(conn: Conn, after: str | None = after) -> tuple[int, str | None]:
            return drive(conn, client.retry_some(asked, after, BATCH))

        made, after = await site.change(some)
        done += made
        if after is None or time.monotonic() > until:
            break
    return back(request, "/dead", "retried", done, pipeline=sent.get("of"), after=after, going=kind if after else None)
