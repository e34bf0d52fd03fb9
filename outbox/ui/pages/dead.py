"""Dead jobs, grouped by stage and kind of error: what they died of, and that they run again."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ...operations import look
from ..site import Site


async def dead(site: Site, request: Request) -> Response:
    """Shows the kinds of errors, each with the number of its dead jobs."""
    pipeline = request.query_params.get("pipeline") or None
    kinds = await site.panel(request, "kinds", lambda conn: look.errors(conn, pipeline))
    latest = await site.panel(request, "latest", lambda conn: look.dead(conn, pipeline, 50))
    return site.page(
        request, "dead.html", kinds=kinds, latest=latest, pipeline=pipeline,
        total=sum(row["jobs"] for row in kinds.value or []),
    )  # fmt: skip
