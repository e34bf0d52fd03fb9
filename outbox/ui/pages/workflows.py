"""Lists of workflows, with the filters of `Pipeline.find`."""

from __future__ import annotations

import re

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...client.lists import WAITS
from ...operations import look
from ..site import Conn, Site

ON_A_PAGE = 50
"""Workflows on a page."""

_TEXTS = ("pipeline", "status", "entity", "assignee", "waits_for", "error", "after")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


async def workflows(site: Site, request: Request) -> Response:
    """Shows a page of a list. The filters are in the URL."""
    query = request.query_params
    asked = {name: query.get(name) or None for name in _TEXTS}
    older = (query.get("older") or "").strip()
    dead = query.get("dead") == "1"
    seconds = _seconds(older)

    def find(conn: Conn) -> look.Row:
        return look.workflows(conn, **asked, older=seconds, dead=dead, limit=ON_A_PAGE)

    found = await site.find(find)
    names = await site.reads.panel(look.names)
    filters = {**{name: value for name, value in asked.items() if name != "after"}, "older": older, "dead": int(dead)}
    return site.page(
        request, "workflows.html", found=found, filters=filters, names=names.value or ([], []), waits=WAITS,
        first=asked["after"] is None,
    )  # fmt: skip


def _seconds(older: str) -> float | None:
    if not older:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", older, re.ASCII)
    if not match:
        raise HTTPException(400, f"{older!r} is not a time such as 90s, 15m, 2h or 3d.")
    return float(match[1]) * _UNITS[match[2]]
