"""The first page: where everything is, what waits for a person, and what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from ...operations import doctor, look
from .. import facts
from ..graph import sparkline
from ..site import Conn, Site


async def overview(site: Site, request: Request) -> Response:
    """Shows a row for each pipeline and stage, in the order of the flow."""
    standing, late, relays, flow, questions, found = await asyncio.gather(
        site.reads.panel(_standing),
        site.reads.panel(lambda conn: look.tables(conn, ["overdue"])["overdue"]),
        site.reads.panel(lambda conn: look.tables(conn, ["relays"])["relays"]),
        site.reads.panel(facts.flow_of_hour),
        site.reads.panel(_questions),
        site.reads.panel(lambda conn: doctor.examine(conn, list(site.pipelines.values()))),
    )
    lines = {place: sparkline(counts) for place, counts in (flow.value or {}).items()}
    return site.page(
        request, "overview.html", standing=standing, late=late, relays=relays, flow=flow, lines=lines,
        questions=questions, findings=found,
    )  # fmt: skip


async def doctor_page(site: Site, request: Request) -> Response:
    """Shows all findings of the doctor."""
    found = await site.reads.panel(lambda conn: doctor.examine(conn, list(site.pipelines.values())))
    return site.page(request, "doctor.html", findings=found)


def _standing(conn: Conn) -> dict[str, list[look.Row]]:
    found = look.tables(conn, ["overview", "workers"])
    pipelines: dict[str, list[look.Row]] = {}
    for row in found["overview"]:
        row["workers"] = _serving(found["workers"], f"{row['pipeline']}.{row['stage']}")
        pipelines.setdefault(row["pipeline"], []).append(row)
    return pipelines


def _serving(workers: Sequence[look.Row], stage: str) -> list[str]:
    return [worker["name"] for worker in workers if stage in worker["stages"]]


def _questions(conn: Conn) -> int:
    found = look.approvals(conn, limit=1)
    return len(found) + found.more
