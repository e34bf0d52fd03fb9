"""A pipeline as a drawing: its statuses in the order of the flow, its legal changes, and how many are where."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...operations import look
from .. import facts, graph
from ..site import Conn, Site


async def pipeline(site: Site, request: Request) -> Response:
    """Shows a pipeline."""
    name = request.query_params.get("pipeline", "")

    def find(conn: Conn) -> dict[str, Any] | None:
        found = facts.pipeline_map(conn, name)
        if found is None:
            return None
        return {**found, "rows": {row["status"]: row for row in look.overview(conn, name)}}

    found = await site.find(request, find)
    if found is None:
        raise HTTPException(404, f'Pipeline "{name}" is not deployed here.')
    drawing = graph.draw(found["initial"], found["changes"], found["final"])
    return site.page(request, "pipeline.html", name=name, found=found, drawing=drawing, longest=graph.LONGEST)
