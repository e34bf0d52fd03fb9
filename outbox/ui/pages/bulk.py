"""Does to all workflows that a filter holds what a person does to one: says how many first, then goes on in batches.

Its state is in the form of each page, not in the process. Closing the page stops it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, get_args

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...errors import InvalidInput
from ...operations import bulk
from .. import facts
from ..person import Person
from ..site import Conn, Site, back, form, person
from .workflows import filters_of

PATIENCE = 2.0
"""Seconds that a request works. Then the page says how far it is, and goes on or is stopped."""


async def ask(site: Site, request: Request) -> Response:
    """Says how many workflows a filter holds, and asks whether it is to be done to all of them."""
    what, shown = _read(request.query_params, person(request, "operate"))
    n, whole, at = await site.find(request, lambda conn: bulk.count(conn, what))
    targets: list[str] = []
    if what.act == "move":
        of, status = what.filters["pipeline"], what.filters["status"]
        targets = await site.find(request, lambda conn: facts.moves_within(conn, of, status))
    state = {"until": at, "total": n, "whole": int(whole)}
    return site.page(request, "bulk.html", what=what, filters=shown, state=state, targets=targets, begun=False)


async def do(site: Site, request: Request) -> Response:
    """Goes on for a few seconds, batch by batch, and says how far it is."""
    who = person(request, "operate")
    sent = await form(request)
    what, shown = _read(sent, who)
    try:
        until = datetime.fromisoformat(sent.get("until", ""))
        done, passed, total = (int(sent.get(name) or 0) for name in ("done", "passed", "total"))
    except ValueError:
        raise HTTPException(400, "This form can't be read.") from None
    if until.tzinfo is None or (what.act == "move" and not what.to_status):
        raise HTTPException(400, "This form can't be read.")
    after, why, stop = sent.get("after") or None, sent.get("why") or None, time.monotonic() + PATIENCE
    refused: HTTPException | None = None
    while True:

        def some(conn: Conn, after: str | None = after) -> bulk.Done:
            return bulk.some(conn, what, until, after, bulk.BATCH)

        try:
            made = await site.change(some)
        except HTTPException as error:
            refused = error
            break
        done, passed, why, after = done + made.workflows, passed + made.passed, made.why or why, made.after
        if after is None or time.monotonic() > stop:
            break
    if refused is None and after is None and not passed:
        return back(request, "/workflows", "bulk", done, **shown)
    state = {
        "until": sent["until"], "total": total, "whole": int(sent.get("whole") == "1"), "done": done, "passed": passed,
        "why": why, "after": after, "to_status": what.to_status, "reason": what.reason,
    }  # fmt: skip
    return site.page(
        request, "bulk.html", refused.status_code if refused else 200, problem=refused.detail if refused else None,
        what=what, filters=shown, state=state, targets=[], begun=True, over=refused is None and after is None,
    )  # fmt: skip


def _read(asked: Mapping[str, str], who: Person) -> tuple[bulk.Bulk, dict[str, Any]]:
    """Returns what is to be done to which workflows, and the filters as an address has them."""
    act: Any = asked.get("act")
    if act not in get_args(bulk.Act):
        raise HTTPException(400, "Say what is to be done: retry, move or cancel.")
    filters, shown = filters_of(asked)
    stage = asked.get("stage") or None
    if act == "move" and filters["pipeline"] is None:
        raise HTTPException(400, "Say of which pipeline: each has statuses of its own.")
    try:
        to = asked.get("to_status") or None
        what = bulk.Bulk(act, filters, stage, to, who.name, asked.get("reason") or None)
    except InvalidInput as error:
        raise HTTPException(400, str(error)) from None
    return what, {**shown, **({"stage": stage} if stage else {})}
