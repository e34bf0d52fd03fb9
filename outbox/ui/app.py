"""Makes the dashboard: an ASGI application that mounts under any path."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..checks import check_seconds
from ..definition.pipeline import Pipeline
from ..operations.sessions import PATIENCE, Sessions
from .guard import Guard, Identify
from .live import Live, events
from .pages import bulk, dead, inbox, overview, pipeline, rest, workflow, workflows
from .person import LOOKING, Person
from .site import Site
from .stored import Hide

_PAGES: tuple[tuple[str, Any, Any], ...] = (
    ("/", overview.overview, None),
    ("/pipeline", pipeline.pipeline, None),
    ("/workflows", workflows.workflows, None),
    ("/bulk", bulk.ask, bulk.do),
    ("/workflow", workflow.workflow, None),
    ("/workflow/data", workflow.data, None),
    ("/workflow/{act}", None, workflow.act),
    ("/approvals", inbox.inbox, None),
    ("/approvals/{id}", inbox.question, inbox.decide),
    ("/answer/{token}", inbox.link, inbox.use),
    ("/dead", dead.dead, None),
    ("/messages", rest.messages, None),
    ("/messages/retry", None, rest.retry_parked),
    ("/workers", rest.workers, None),
    ("/stages/pause", None, rest.pause),
    ("/stages/resume", None, rest.resume),
    ("/doctor", overview.doctor_page, None),
)
"""Each path, with what shows it, and what changes it by POST."""

_SHORTEST, _LONGEST = 0.001, 3_600.0
"""Seconds for which a statement may run. Postgres counts milliseconds, and takes 0 for no bound at all."""

_STATIC = {"outbox.css": "text/css", "outbox.js": "text/javascript"}


def dashboard(
    dsn: str,
    *,
    operate_dsn: str | None = None,
    identify: Identify | None = None,
    hide: Hide | None = None,
    hosts: Collection[str] | None = None,
    pipelines: Sequence[Pipeline[Any]] = (),
    statement_timeout: float = PATIENCE,
) -> ASGIApp:
    """Returns a page on which people see, decide and repair, as an ASGI application. Mount it under any path.

    It reads by `dsn`, and changes something only by `operate_dsn` (default: `dsn`), for a person who may.

    `identify(request)`, sync or async, returns the Person who asks, or None, who is refused. Without it, everybody on
    this machine may look, nothing can be changed, and requests from elsewhere are refused.

    `hide` names fields of data that are not shown, such as {"password", "customer.card"}, or is a function that is
    asked by their paths. `hosts` are the names by which the page may be called; with `identify`, the default is any.
    `pipelines` validate edits; without one, the database checks them as those of any program. `statement_timeout` is
    for how many seconds a statement of a page may run.

    Raises SettingsError for a DSN that can't be read, and DefinitionError for a time that can't be waited.
    """
    patience = check_seconds(statement_timeout, "statement_timeout", _SHORTEST, _LONGEST)
    site = Site(
        Sessions(dsn, "ui", patience=patience),
        Sessions(operate_dsn or dsn, "ui operator", writes=True, patience=patience),
        pipelines,
        hide,
        read_only=identify is None,
    )
    return Guard(_routed(site), identify or (lambda request: LOOKING), hosts, near=identify is None)


def alone(
    dsn: str, person: Person, pipelines: Sequence[Pipeline[Any]] = (), *, anywhere: bool = False
) -> ASGIApp:  # fmt: skip
    """Returns the page for the person at this machine, without asking who it is. `anywhere`: for all who reach it."""
    reads, writes = Sessions(dsn, "ui"), Sessions(dsn, "ui operator", writes=True)
    site = Site(reads, writes, pipelines, None, read_only=set(person.may) == {"look"})
    return Guard(_routed(site), lambda request: person, None, near=not anywhere)


def _routed(site: Site) -> ASGIApp:
    live = Live(site.reads, site.shared)
    routes = [
        Route("/static/{name}", _static, methods=["GET"]),
        Route("/events", partial(events, live), methods=["GET"]),
    ]
    for path, show, change in _PAGES:
        if show is not None:
            routes.append(Route(path, partial(show, site), methods=["GET"]))
        if change is not None:
            routes.append(Route(path, partial(change, site), methods=["POST"]))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        request.scope.setdefault("outbox.person", LOOKING)
        return site.page(request, "refused.html", error.status_code, problem=error.detail)

    return Starlette(routes=routes, exception_handlers={HTTPException: refused})


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC:
        raise HTTPException(404, "There is no such file.")
    text = files("outbox.ui").joinpath("static", name).read_text(encoding="utf-8")
    return PlainTextResponse(text, media_type=_STATIC[name], headers={"cache-control": "private, max-age=3600"})
