"""Decides which requests come in: from where, by whom, and from which page. Gives every answer its headers.

A browser sends requests that other sites have made. Forms of other sites are refused by what the browser says of them
(Sec-Fetch-Site or Origin), so neither a token nor a session is needed. A site whose name leads to this machine (DNS
rebinding) is refused by the name that it calls us.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .person import Person

log = logging.getLogger("outbox.ui")

Identify = Callable[[Request], "Person | Awaitable[Person | None] | None"]

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # With "no-referrer", a browser says "null" instead of the origin of our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

_SAFE = ("GET", "HEAD", "OPTIONS")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_OPEN = ("/answer/", "/static/")
"""Where signed links lead: who has one is its person, and needs no other name. And what their pages are made with."""


class Guard:
    """Lets a request in, with `scope["outbox.person"]`, or answers it with 403.

    `hosts` are the names by which the page may be called, beside those of this machine; None: by any. `near`: only this
    machine may see the page.
    """

    def __init__(self, app: ASGIApp, identify: Identify, hosts: Collection[str] | None, *, near: bool) -> None:
        self._app = app
        self._identify = identify
        self._near = near
        if isinstance(hosts, str):
            raise TypeError("hosts must be names, not a string")
        self._hosts = None if hosts is None else {_name(host) for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        scope = _mounted(scope)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            person = await self._who(scope)
            if person is None:
                refusal = "you are not known here"
            elif "look" not in person.may and not _is_open(scope):
                refusal = f"{person.name} may not look"
            else:
                scope = {**scope, "outbox.person": person}
        if refusal is not None:
            answer = PlainTextResponse(f"403: {refusal}\n", 403)
            await answer(scope, receive, sending)
            return
        await self._app(scope, receive, sending)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = _name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts and not _is_near(host):
            return "this page is not called by this name: give its names as hosts="
        if self._near:
            # A request without an address comes through a socket of this machine.
            if not _is_near(host) or not _is_near((scope.get("client") or ("localhost", 0))[0], otherwise=True):
                return "only this machine may see this page, because it doesn't ask who you are (identify=)"
            if any(name in headers for name in _FORWARDED):
                return "a proxy has sent this, and this page doesn't ask who you are (identify=)"
        if scope["method"] not in _SAFE:
            return _foreign(headers)
        return None

    async def _who(self, scope: Scope) -> Person | None:
        if _is_open(scope):
            return Person("link", ())
        request = Request(scope)  # without the body, which is for the page
        if inspect.iscoroutinefunction(self._identify):
            found = await self._identify(request)
        else:
            found = await run_in_threadpool(self._identify, request)
            if inspect.isawaitable(found):
                found = await found
        if found is not None and not isinstance(found, Person):
            raise TypeError(f"identify must return a Person or None, not {type(found).__name__}")
        return found


def _mounted(scope: Scope) -> Scope:
    """Returns the scope with the whole path, and where we are mounted: Litestar hands on only the rest of the path."""
    whole, rest = unquote(scope.get("raw_path") or b"").rstrip("/"), scope["path"].rstrip("/")
    if scope.get("root_path") or not whole.endswith(rest) or whole == rest:
        return scope
    root = whole.removesuffix(rest)
    return {**scope, "root_path": root, "path": root + (rest or "/")}


def _foreign(headers: Headers) -> str | None:
    """Says why a change doesn't come from a page of ours. None if it does."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return None if site == "same-origin" else "another site has sent this"
    origin = headers.get("origin")
    if origin is None:
        return "it is not said which page has sent this: send the header Origin, or Sec-Fetch-Site: same-origin"
    # Not the scheme: behind a proxy that ends TLS, we don't know it.
    host = headers.get("host", "")
    return None if host and urlsplit(origin).netloc.lower() == host.lower() else "another site has sent this"


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).startswith(_OPEN)


def _name(host: str) -> str:
    """Returns the name in a Host header, without its port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")


def _is_near(host: str, *, otherwise: bool = False) -> bool:
    """Tells whether a name or an address is this machine's own loopback; `otherwise` for one that is no address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return otherwise
