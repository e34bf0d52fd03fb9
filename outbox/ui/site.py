"""Holds what all pages share: sessions, links, templates, and how values are shown."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ..definition.pipeline import Pipeline
from ..errors import InvalidInput, NotFound, OutboxError, Refused
from ..operations.finding import Finding
from ..operations.look import COUNTED
from ..operations.sessions import Late, Panel, Sessions
from ..texts import age
from . import stored
from .person import Person
from .shared import Shared
from .stored import Hide, Hiding

log = logging.getLogger("outbox.ui")
T = TypeVar("T")
Conn = psycopg.Connection[Any]

MOST_BODY = 1_000_000
"""Bytes of a form. What is larger is not typed by a person."""

MOST_FIELDS = 1_000
"""Fields of a form."""

EXAMINED = 30.0
"""Seconds for which the doctor's findings are shown before it looks again."""

FOLLOWS = "x-outbox-follows"
"""The header with which an open page asks for itself again after a change."""

DONE = {
    "moved": "It was moved.",
    "retried": "It runs again.",
    "bulk": "It was done to all of them.",
    "cancelled": "It was cancelled.",
    "signalled": "The signal was sent.",
    "signalled before": "This form has sent the same signal already: it was sent once.",
    "decided": "Your answer is kept.",
    "paused": "The stage is paused.",
    "resumed": "The stage runs again.",
    "marked": "They are tried again.",
}
"""What is said after a change. A link can name one of these, and can't say anything of its own."""

_CONTROL = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
"""Control characters as signs that are seen. The signs of writing directions stay: they are isolated."""


class Site:
    """The dashboard of one database."""

    def __init__(
        self, reads: Sessions, writes: Sessions, pipelines: Sequence[Pipeline[Any]], hide: Hide | None,
        *, read_only: bool,
    ) -> None:  # fmt: skip
        self.reads, self.writes, self.read_only = reads, writes, read_only
        self.pipelines = {pipeline.name: pipeline for pipeline in pipelines}
        self.hiding = Hiding(hide)
        self.shared: Shared[Any] = Shared()
        self.findings: Shared[list[Finding]] = Shared(EXAMINED)

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Returns a page. `problem` is said at its top."""
        person: Person = request.scope["outbox.person"]
        done = DONE.get(request.query_params.get("done", ""))
        number = request.query_params.get("n", "")
        if done is not None and re.fullmatch(r"\d{1,9}", number):
            done = f"{done} ({int(number):,})"
        shared = {
            "me": person, "link": Links(request), "here": _here(request), "now": datetime.now(UTC), "done": done,
            "problem": None, "linked": "look" not in person.may, "hiding": self.hiding,
        }  # fmt: skip
        text = _templates().get_template(template).render({**shared, **values})
        return HTMLResponse(text, status)

    async def panel(self, request: Request, name: str, look: Callable[[Conn], T]) -> Panel[T]:
        """Returns what a lookup finds for a part of a page, or says why it failed."""
        return await self._asked(request, name, self.reads.panel(look))

    async def _asked(self, request: Request, name: str, ask: Coroutine[Any, Any, T]) -> T:
        """Asks for a page. Pages that follow what happens share what their lookups find, by address and name."""
        if FOLLOWS not in request.headers:
            return await ask  # who opens a page sees what is there now
        return cast(T, await self.shared.get((request.scope["path"], request.scope["query_string"], name), ask))

    async def find(self, request: Request, look: Callable[[Conn], T]) -> T:
        """Returns what a page can't do without. Raises HTTPException if it isn't there or can't be read."""
        try:
            return await self._asked(request, "", self.reads.run(look))
        except NotFound as error:
            raise HTTPException(404, str(error)) from None
        except (InvalidInput, Refused, psycopg.DataError) as error:  # such as a cursor that no page has given
            raise HTTPException(400, _told(error)) from None
        except Exception as error:
            raise HTTPException(503, self.reads.explain(error)) from error

    async def change(self, what: Callable[[Conn], T]) -> T:
        """Makes a change in a transaction. Raises HTTPException, with the reason, if it is refused."""
        try:
            return await self.writes.run(what)
        except HTTPException:
            raise
        except NotFound as error:
            raise HTTPException(404, _told(error)) from error
        except (Refused, OutboxError) as error:
            raise HTTPException(400 if isinstance(error, InvalidInput) else 409, _told(error)) from error
        except psycopg.DataError as error:
            raise HTTPException(400, _told(error)) from error
        except psycopg.errors.InsufficientPrivilege as error:
            reason = "the database role of this page may only look: give one that may operate as operate_dsn="
            raise HTTPException(403, reason) from error
        except psycopg.errors.QueryCanceled as error:
            raise HTTPException(503, "It is held by somebody else's transaction: nothing was changed.") from error
        except (Late, psycopg.OperationalError) as error:
            raise HTTPException(503, f"{self.writes.explain(error)} Look whether it was changed.") from error
        except Exception as error:
            raise HTTPException(500, self.writes.explain(error)) from error


class Links:
    """Writes the links of a page, wherever it is mounted."""

    def __init__(self, request: Request) -> None:
        self._root = quote("/" + request.scope.get("root_path", "").strip("/"), safe="/~").rstrip("/")

    def __call__(self, path: str, **query: Any) -> str:
        asked = {name: str(value) for name, value in query.items() if value not in (None, "", False)}
        return f"{self._root}{path}{'?' if asked else ''}{urlencode(asked)}"


def back(request: Request, path: str, done: str, n: int | None = None, **query: Any) -> Response:
    """Sends the browser from a form to a page, which says what was done."""
    number = None if n is None else str(n)  # a link leaves out 0, and that nothing was done is to be said
    return RedirectResponse(Links(request)(path, **query, done=done, n=number), 303)


def person(request: Request, right: str) -> Person:
    """Returns who asks. Raises HTTPException unless they have this right."""
    found: Person = request.scope["outbox.person"]
    if right not in found.may:
        raise HTTPException(403, f"{found.name} may not {right}.")
    return found


async def form(request: Request) -> dict[str, str]:
    """Returns the fields of a form. Raises HTTPException for one that no page of ours sends."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "" and request.headers.get("content-length", "0") == "0":
        return {}  # a form of one button
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "This is not a form.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise HTTPException(413, f"A form has {MOST_BODY:,} bytes at most.")
    try:
        found = parse_qsl(
            body.decode(), keep_blank_values=True, strict_parsing=False, errors="strict", max_num_fields=MOST_FIELDS
        )
    except ValueError:
        raise HTTPException(400, "This form can't be read.") from None
    return {name: value.replace("\r\n", "\n") for name, value in found}


@cache
def _templates() -> Environment:
    """Returns the templates, which are read once in a process."""
    made = Environment(
        loader=PackageLoader("outbox.ui"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "time": time, "ago": ago, "signs": signs, "document": document, "summary": summary, "up_to": up_to,
    }  # fmt: skip
    return made


@pass_context
def document(page: Context, value: Any, most: int = stored.FOLD) -> Markup:
    """Returns stored JSON as HTML, without what is hidden: what is too long ends, and says so."""
    text, more = stored.text(value, page["hiding"], most)
    end = Markup('<p class="more">… it goes on</p>') if more else ""
    return Markup('<pre class="json">{}</pre>{}').format(signs(text), end)


def signs(value: object) -> str:
    """Returns any text with its control characters as signs that are seen."""
    return str(value).translate(_CONTROL)


def time(value: Any) -> Markup | str:
    """Returns a time in UTC, which the script writes in the reader's zone. What is no time of Python's is text."""
    if value is None:
        return ""
    if not isinstance(value, datetime):
        return str(value)
    at = value.astimezone(UTC)
    exact = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{}">{} UTC</time>').format(exact, exact, f"{at:%Y-%m-%d %H:%M:%S}")


def ago(value: Any) -> str:
    """Returns how long ago a time was, or a number of seconds, in short."""
    if isinstance(value, datetime):
        value = (datetime.now(UTC) - value).total_seconds()
    return age(value) if isinstance(value, int | float) else ""


def summary(text: object, most: int = 200) -> str:
    """Returns the first line of a text, and not more of it than fits into a row."""
    line = signs(str(text).strip().partition("\n")[0])
    return line if len(line) <= most else f"{line[:most]}…"


def up_to(count: int, most: int = COUNTED) -> str:
    """Returns a number that was counted up to a bound."""
    return f"{count:,}" if count < most else f"{most:,}+"


def _told(error: Exception) -> str:
    diag = getattr(error, "diag", None)
    return str(getattr(diag, "message_primary", None) or error)


def _here(request: Request) -> str:
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", "")) or "/"
