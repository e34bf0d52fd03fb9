"""Questions that wait for a person: the inbox, one question with the form for its answer, and signed links."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...client import approvals, links, questions
from ...client.execute import drive
from ...client.lists import check_limit
from ...client.pipelines import PipelineLike, Unchecked
from ...errors import DataChanged, InvalidInput, LinkRefused, SettingsError, TooLate
from ...operations import look
from .. import stored
from ..form import MOST, Field, edited, fields
from ..site import Conn, Site, back, form, person

ON_A_PAGE = 25
"""Questions on a page: each shows what it is about."""


async def inbox(site: Site, request: Request) -> Response:
    """Shows the open questions, the oldest first or the one first that ends first."""
    query = request.query_params
    asked = {name: query.get(name) or None for name in ("pipeline", "assignee", "after")}
    by_deadline = query.get("order") == "deadline"
    try:
        after = approvals.question_id(asked["after"])
    except InvalidInput as error:
        raise HTTPException(400, str(error)) from None

    def find(conn: Conn) -> list[questions.Approval]:
        limit = check_limit(ON_A_PAGE + 1)
        steps = questions.open_questions({**asked, "after": after, "limit": limit}, by_deadline=by_deadline)
        return drive(conn, steps)

    found = await site.find(request, find)
    more = found[ON_A_PAGE - 1].id if len(found) > ON_A_PAGE else None
    names = await site.panel(request, "names", look.names)
    filters = {**asked, "order": "deadline" if by_deadline else None}
    return site.page(
        request, "inbox.html", found=found[:ON_A_PAGE], more=more, filters=filters, names=names.value or ([], [])
    )


async def question(site: Site, request: Request) -> Response:
    """Shows a question with a form for its answer, or with its answer."""
    return await _show(site, request, _id(request))


async def decide(site: Site, request: Request) -> Response:
    """Answers a question: this one, about the data that was shown. Who comes too late is told who was first."""
    who = person(request, "decide")
    id_, sent = _id(request), await form(request)
    asked = await site.find(request, lambda conn: look.question(conn, id_))
    if asked is None:
        raise HTTPException(404, "There is no such question.")
    try:
        answer = {**_answer(site, asked, sent), "by": who.name, "groups": who.groups, "question": id_}
        await site.change(
            lambda conn: approvals.decide(
                conn, _pipeline(site, asked["pipeline"]), asked["entity_id"], sent.get("decision", ""), **answer
            )
        )
    except InvalidInput as error:
        return await _show(site, request, id_, HTTPException(400, str(error)), sent)
    except HTTPException as error:
        return await _show(site, request, id_, error, sent)
    return back(request, f"/approvals/{id_}", "decided")


async def link(site: Site, request: Request) -> Response:
    """Shows what a signed link asks. It decides nothing: mail scanners open links, too."""
    return await _show_link(site, request)


async def use(site: Site, request: Request) -> Response:
    """Answers the question of a signed link, in the name of its person."""
    sent, token = await form(request), request.path_params["token"]
    if site.read_only:
        raise HTTPException(403, "This page is read-only: without identify= it does not know who asks.")
    try:
        _, asked = await _of_link(site, token)
        pipeline, answer = _pipeline(site, asked["pipeline"]), _answer(site, asked, sent)
        await site.change(
            lambda conn: links.use_link(conn, token, sent.get("decision", ""), pipeline=pipeline, **answer)
        )
    except LinkRefused:
        return await _show_link(site, request)
    except InvalidInput as error:
        return await _show_link(site, request, HTTPException(400, str(error)), sent)
    except HTTPException as error:
        if isinstance(error.__cause__, SettingsError):
            raise
        return await _show_link(site, request, error, sent)
    return back(request, f"/answer/{token}", "decided")


async def _show(
    site: Site, request: Request, id_: UUID, refused: HTTPException | None = None, sent: dict[str, str] | None = None
) -> Response:
    asked = await site.find(request, lambda conn: look.question(conn, id_))
    if asked is None:
        raise HTTPException(404, "There is no such question.")
    return site.page(request, "question.html", asked=asked, **_form(site, asked, refused, sent))


async def _show_link(
    site: Site, request: Request, refused: HTTPException | None = None, sent: dict[str, str] | None = None
) -> Response:
    try:
        found, asked = await _of_link(site, request.path_params["token"])
    except LinkRefused as error:
        return site.page(request, "answer.html", 410, problem=str(error), found=None, linked=True)
    shown = _form(site, asked, refused, sent)
    return site.page(request, "answer.html", found=found, asked=asked, linked=True, **shown)


async def _of_link(site: Site, token: str) -> tuple[links.ApprovalLink, look.Row]:
    """Returns what a signed link is for, and its question. Raises LinkRefused for one that can't be used."""

    def find(conn: Conn) -> tuple[links.ApprovalLink, look.Row | None]:
        found = links.open_link(conn, token)
        return found, look.question(conn, found.question_id)

    try:
        found, asked = await site.reads.run(find)
    except LinkRefused:
        raise
    except SettingsError as error:
        raise HTTPException(404, str(error)) from error
    except Exception as error:
        raise HTTPException(503, site.reads.explain(error)) from error
    if asked is None:
        raise LinkRefused("this link can't be used: what it was for is gone", why="unknown")
    return found, asked


def _form(site: Site, asked: look.Row, refused: HTTPException | None, sent: dict[str, str] | None) -> dict[str, Any]:
    """Returns what the form for an answer is made from, with what was sent if that was refused."""
    status, problem = (refused.status_code, _why(refused)) if refused else (200, None)
    return {
        "status": status, "problem": problem, "fields": _fields(site, asked), "sent": sent or {},
        "too_large": _is_large(asked["data"]), "hidden_fields": site.hiding.hides_some(asked["data"]),
    }  # fmt: skip


def _why(refused: HTTPException) -> str:
    """Returns in a sentence why an answer was refused: who was faster, and when, or that the data has changed."""
    error = refused.__cause__
    if isinstance(error, TooLate):
        at = f", at {error.at:%Y-%m-%d %H:%M:%S} UTC" if error.at else ""
        if error.ended == "decided":
            return f"Too late: {error.by} has decided {error.decision or error.to_status}{at}."
        return f"Too late: the question has ended ({error.ended}){at}."
    if isinstance(error, DataChanged):
        return "The data has changed while you read. Below is what it is now: look at it, and answer again."
    return str(refused.detail)


def _answer(site: Site, asked: look.Row, sent: dict[str, str]) -> dict[str, Any]:
    """Returns the parameters of an answer that the form has. Raises InvalidInput for an edit that can't be read."""
    answer: dict[str, Any] = {"reason": sent.get("reason") or None, "shown": sent.get("shown") or None}
    edit = edited(_fields(site, asked), asked["data"], sent) if sent.get("shown") == asked["shown"] else None
    if edit is not None:
        answer["about" if asked["own_data"] else "edit"] = edit
    return answer


def _fields(site: Site, asked: look.Row) -> list[Field]:
    """Returns the form for an edit; none if the question allows none, or the data can't be edited in a browser."""
    if asked["ended_at"] is not None or not asked["edits_allowed"] or site.hiding.hides_some(asked["data"]):
        return []
    return [] if _is_large(asked["data"]) else fields(asked["schema"], asked["data"])


def _is_large(data: Any) -> bool:
    return stored.text(data, most=MOST)[1]


class _AsStored(Unchecked):
    """A pipeline whose code isn't here. Numbers of the data that were left as they are stay as they are stored."""

    def dump_readable(self, data: Any) -> str:
        """Returns data as JSON text."""
        super().dump_readable(data)  # checks it
        return stored.text(data)[0]


def _pipeline(site: Site, name: str) -> PipelineLike:
    return site.pipelines.get(name) or _AsStored(name)


def _id(request: Request) -> UUID:
    try:
        return UUID(request.path_params["id"])
    except ValueError:
        raise HTTPException(404, "There is no such question.") from None
