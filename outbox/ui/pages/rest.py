"""What runs beside the workflows: messages and relays, workers, schedules, limits and pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ... import documents
from ...client import stages
from ...operations import change, look
from .. import facts
from ..site import Conn, Site, back, form, person


async def messages(site: Site, request: Request) -> Response:
    """Shows the relays, and what relays and consumers have parked."""
    standing, parked = await asyncio.gather(
        site.panel(request, "standing", lambda conn: look.tables(conn, ["relays", "parked_deliveries"])),
        site.panel(request, "parked", _parked),
    )
    return site.page(request, "messages.html", standing=standing, parked=parked)


def _parked(conn: Conn) -> look.Listed:
    found = look.parked(conn)
    for row in found:
        if row["body"] is not None:
            row["payload"] = documents.read(row["body"])
    return found


async def retry_parked(site: Site, request: Request) -> Response:
    """Has what one relay or one consumer has parked tried again: one message, or all of them."""
    person(request, "operate")
    sent = await form(request)
    relay, consumer = sent.get("relay") or None, sent.get("consumer") or None
    if (relay is None) == (consumer is None):
        raise HTTPException(400, "Say which relay or which consumer has parked them.")
    try:
        ids = [int(sent["id"])] if sent.get("id") else []
    except ValueError:
        raise HTTPException(400, "This is not the id of a message.") from None
    marked = await site.change(lambda conn: change.retry_parked(conn, relay=relay, consumer=consumer, ids=ids))
    return back(request, "/messages", "marked", marked)


async def workers(site: Site, request: Request) -> Response:
    """Shows the workers, what they run, limits, schedules and pauses."""
    standing, schedules, pauses = await asyncio.gather(
        site.panel(request, "standing", lambda conn: look.tables(conn, ["workers", "progress", "limits"])),
        site.panel(request, "schedules", look.schedules),
        site.panel(request, "pauses", facts.pauses),
    )
    return site.page(request, "workers.html", standing=standing, schedules=schedules, pauses=pauses)


async def pause(site: Site, request: Request) -> Response:
    """Pauses a stage."""
    return await _stage(site, request, stages.pause, "paused")


async def resume(site: Site, request: Request) -> Response:
    """Has a paused stage run again."""
    return await _stage(site, request, stages.resume, "resumed")


async def _stage(site: Site, request: Request, act: Callable[..., object], done: str) -> Response:
    who = person(request, "operate")
    sent = await form(request)
    stage, pipeline, reason = sent.get("stage", ""), sent.get("pipeline", ""), sent.get("reason") or None
    await site.change(lambda conn: act(conn, stage, pipeline=pipeline, by=who.name, reason=reason))
    return back(request, "/workers" if sent.get("from") == "workers" else "/", done)
