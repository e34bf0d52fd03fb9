"""The first page: where everything is, what waits for a person, and what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ...operations import doctor, look
from ...operations.finding import Finding
from ...operations.sessions import Panel
from .. import facts
from ..graph import sparkline
from ..site import FOLLOWS, Conn, Site

STATUSES = 100
"""Statuses of a pipeline that the page shows. The pipeline's own page has all."""

ROWS = 1_000
"""Statuses that the page shows: of the pipelines after that, only the sums."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A pipeline as the page shows it: some of its `rows`, how many others there are, and its sums."""

    rows: Sequence[look.Row]
    more: int
    workflows: int
    dead: int


async def overview(site: Site, request: Request) -> Response:
    """Shows a row for each pipeline and stage, in the order of the flow."""
    standing, late, relays, flow, questions, found = await asyncio.gather(
        site.panel(request, "standing", _standing),
        site.panel(request, "overdue", lambda conn: look.tables(conn, ["overdue"])["overdue"]),
        site.panel(request, "relays", lambda conn: look.tables(conn, ["relays"])["relays"]),
        site.panel(request, "flow", facts.flow_of_hour),
        site.panel(request, "questions", _questions),
        _findings(site),
    )
    lines = {place: sparkline(counts) for place, counts in (flow.value or {}).items()}
    return site.page(
        request, "overview.html", standing=standing, late=late, relays=relays, flow=flow, lines=lines,
        questions=questions, findings=found,
    )  # fmt: skip


async def doctor_page(site: Site, request: Request) -> Response:
    """Shows all findings of the doctor."""
    if FOLLOWS not in request.headers:
        site.findings.forget()  # who comes here wants to know it now
    return site.page(request, "doctor.html", findings=await _findings(site))


async def _findings(site: Site) -> Panel[list[Finding]]:
    """Returns what the doctor finds, or has found a moment ago: it asks too much for each look at a page."""
    pipelines = list(site.pipelines.values())
    examine = site.reads.run(lambda conn: doctor.examine(conn, pipelines, all_workflows=False))
    return await site.reads.told(site.findings.get("findings", examine))


def _standing(conn: Conn) -> dict[str, Standing]:
    workers = look.tables(conn, ["workers"])["workers"]
    pipelines: dict[str, list[look.Row]] = {}
    for row in look.overview(conn):
        pipelines.setdefault(row["pipeline"], []).append(row)
    found: dict[str, Standing] = {}
    room = ROWS
    for name, rows in pipelines.items():
        shown = _shown(rows, min(STATUSES, room))
        room -= len(shown)
        for row in shown:
            row["workers"] = _serving(workers, f"{name}.{row['stage']}")
        sums = (sum(row["workflows"] for row in rows), sum(row["dead"] for row in rows))
        found[name] = Standing(shown, len(rows) - len(shown), *sums)
    return found


def _shown(rows: Sequence[look.Row], most: int) -> Sequence[look.Row]:
    """Returns rows in their order: all, or if they are too many, first of all those that have something."""
    if len(rows) <= most:
        return rows
    first = sorted(range(len(rows)), key=lambda n: (not (rows[n]["workflows"] or rows[n]["paused"]), n))
    return [rows[n] for n in sorted(first[:most])]


def _serving(workers: Sequence[look.Row], stage: str) -> list[str]:
    return [worker["name"] for worker in workers if stage in worker["stages"]]


def _questions(conn: Conn) -> int:
    found = look.approvals(conn, limit=1)
    return len(found) + found.more
