"""Lists of workflows, with the filters of `Pipeline.find`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...client.lists import WAITS
from ...operations import look
from ..site import Conn, Site

ON_A_PAGE = 50
"""Workflows on a page."""

_TEXTS = ("pipeline", "status", "entity", "assignee", "waits_for", "error")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


async def workflows(site: Site, request: Request) -> Response:
    """Shows a page of a list. The filters are in the URL."""
    filters, shown = filters_of(request.query_params)
    after = request.query_params.get("after") or None

    def find(conn: Conn) -> look.Row:
        return look.workflows(conn, **filters, after=after, limit=ON_A_PAGE, data=False)

    found = await site.find(request, find)
    names = await site.panel(request, "names", lambda conn: look.names(conn, filters["pipeline"]))
    return site.page(
        request, "workflows.html", found=found, filters=shown, names=names.value or ([], []), waits=WAITS,
        first=after is None, some=any(filters.values()),
    )  # fmt: skip


def filters_of(asked: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns filters as `Pipeline.find` takes them, and as an address or a form has them."""
    texts = {name: asked.get(name) or None for name in _TEXTS}
    older, dead = (asked.get("older") or "").strip(), asked.get("dead") == "1"
    return {**texts, "older": _seconds(older), "dead": dead}, {**texts, "older": older, "dead": int(dead)}


def _seconds(older: str) -> float | None:
    if not older:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", older, re.ASCII)
    if not match:
        raise HTTPException(400, f"{older!r} is not a time such as 90s, 15m, 2h or 3d.")
    return float(match[1]) * _UNITS[match[2]]
