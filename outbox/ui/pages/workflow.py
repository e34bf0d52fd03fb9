"""One workflow: why it does not move, its story, its data, and what can be done about it."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ... import documents
from ...client import cancel, move, signals
from ...operations import change, look
from .. import facts, stored, timeline
from ..person import Person
from ..site import Conn, Site, back, form, person

EVENTS = 200
"""Events of each kind that a page shows: the latest."""

QUESTIONS = 20
"""Questions of which what they tell of older data is compared: the latest."""


async def workflow(site: Site, request: Request) -> Response:
    """Shows a workflow."""
    return await _show(site, request, *_asked(request))


async def data(site: Site, request: Request) -> Response:
    """Returns all of the data of a workflow as text, as it is stored but for what is hidden."""
    pipeline, entity = _asked(request)
    found = await site.find(request, lambda conn: look.find_one(conn, entity, pipeline))
    return PlainTextResponse(stored.text(found["metadata"], site.hiding)[0])


async def act(site: Site, request: Request) -> Response:
    """Does what a button says, in the name of the person, and shows the workflow again."""
    who = person(request, "operate")
    name = request.path_params["act"]
    if name not in _ACTS:
        raise HTTPException(404, "There is no such action.")
    sent = await form(request)
    # Our own forms have both in their address: browsers change the line breaks of fields.
    asked = {**sent, **request.query_params}
    pipeline, entity = asked.get("pipeline", ""), asked.get("entity", "")
    try:
        done = await site.change(lambda conn: _ACTS[name](conn, pipeline, entity, who, sent))
    except HTTPException as error:
        return await _show(site, request, pipeline, entity, error)
    return back(request, "/workflow", done, pipeline=pipeline, entity=entity)


async def _show(
    site: Site, request: Request, pipeline: str | None, entity: str, refused: HTTPException | None = None
) -> Response:
    def find(conn: Conn) -> dict[str, Any]:
        row = look.find_one(conn, entity, pipeline)
        found = look.show(conn, row, EVENTS)
        known = facts.data_known(conn, row, QUESTIONS)
        return {
            "found": found, "can": facts.moves_of(conn, row),
            "events": timeline.tell(found, known, site.hiding),
        }  # fmt: skip

    try:
        shown = await site.find(request, find)
    except HTTPException as error:
        raise (refused or error) from None
    status, problem = (refused.status_code, refused.detail) if refused else (200, None)
    return site.page(request, "workflow.html", status, problem=problem, form_id=uuid4().hex, **shown)


def _asked(request: Request) -> tuple[str | None, str]:
    query = request.query_params
    return query.get("pipeline") or None, query.get("entity", "")


def _retry(conn: Conn, pipeline: str, entity: str, who: Person, sent: dict[str, str]) -> str:
    if not change.retry(conn, pipeline, entity, by=who.name, reason=sent.get("reason") or None):
        raise HTTPException(409, "It has no dead job any more: nothing was changed.")
    return "retried"


def _move(conn: Conn, pipeline: str, entity: str, who: Person, sent: dict[str, str]) -> str:
    _unchanged(conn, pipeline, entity, sent)
    move.move(pipeline, conn, entity, sent.get("status", ""), who.name, sent.get("reason") or None)
    return "moved"


def _cancel(conn: Conn, pipeline: str, entity: str, who: Person, sent: dict[str, str]) -> str:
    _unchanged(conn, pipeline, entity, sent)
    cancel.cancel(pipeline, conn, entity, who.name, sent.get("reason") or None)
    return "cancelled"


def _signal(conn: Conn, pipeline: str, entity: str, who: Person, sent: dict[str, str]) -> str:
    text = sent.get("payload", "").strip()
    try:
        payload = documents.decoder("payload")(text) if text else None
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The payload is not JSON: {error}") from None
    name, form_id = sent.get("name", ""), sent.get("form")
    # A double click sends the form twice, and means one signal; with another payload, it is another signal.
    content = sha256("\n".join((who.name, name, text)).encode()).hexdigest()
    id_ = f"page {form_id} {content[:16]}" if form_id else None
    sending = signals.signal(conn, pipeline, entity, name, payload, id=id_, by=who.name)
    return "signalled" if sending.created else "signalled before"


_ACTS: dict[str, Callable[[Conn, str, str, Person, dict[str, str]], str]] = {
    "retry": _retry,
    "move": _move,
    "cancel": _cancel,
    "signal": _signal,
}


def _unchanged(conn: Conn, pipeline: str, entity: str, sent: dict[str, str]) -> None:
    """Refuses what was asked for on a page that shows an older status: it may not be meant for the one of now."""
    now = look.find_one(conn, entity, pipeline)["current_status"]
    if sent.get("seen") not in (None, now):
        raise HTTPException(409, f"It was in {sent['seen']} when you looked, and is in {now} now: nothing was changed.")
