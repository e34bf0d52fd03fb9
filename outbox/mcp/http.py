"""Serves by streamable HTTP: on this machine to everybody, elsewhere to who has the token.

The SDK checks the names by which it is called (Host) and the pages that call it (Origin), so that no web page in a
browser on this machine reaches it by DNS rebinding.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any

from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import SettingsError

NEAR = ("127.0.0.1", "localhost", "[::1]")
"""The names of this machine in URLs."""

_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""What a proxy adds: behind one, everybody seems to be on this machine."""

SHORTEST = 16
"""Characters of a token: what is shorter is guessed."""


def http_app(
    server: MCPServer[Any], *, token: str | None = None, hosts: Collection[str] = (), path: str = "/mcp"
) -> Starlette:
    """Returns an ASGI application that serves by streamable HTTP. Its lifespan must be run.

    `token` is what each request must bring as its bearer token. `hosts` are the names by which clients may call it,
    beside those of this machine. Without a token, only this machine may.

    Raises SettingsError for other hosts without a token, and for a token that is too short.
    """
    if token is None and not all(is_near(host) for host in hosts):
        raise SettingsError("others may call this server only with a token: set OUTBOX_MCP_TOKEN")
    if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token):
        raise SettingsError(
            f"the token (OUTBOX_MCP_TOKEN) must have {SHORTEST} or more ASCII characters without spaces"
        )
    named = [f"[{host}]" if ":" in host else host.lower() for host in hosts]
    allowed = [form for host in (*NEAR, *named) for form in (host, f"{host}:*")]
    security = TransportSecuritySettings(
        allowed_hosts=allowed,
        allowed_origins=[f"{scheme}://{form}" for scheme in ("http", "https") for form in allowed],
    )
    app = server.streamable_http_app(streamable_http_path=path, transport_security=security)
    app.user_middleware.append(Middleware(_Guard, token=token))
    return app


def ending(app: ASGIApp) -> ASGIApp:
    """Returns an application for a server that cancels requests when it ends: they end, and are no failure."""

    async def until_cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await app(scope, receive, noting)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if started:
                await send({"type": "http.response.body", "body": b""})
            else:
                await PlainTextResponse("503: the server ends\n", 503)(scope, receive, send)

    return until_cancelled


def is_near(host: str) -> bool:
    """Tells whether a name or an address is this machine's own loopback."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class _Guard:
    """Refuses requests without the token; without any token, those that come from elsewhere."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            headers = {"www-authenticate": "Bearer"} if refusal == 401 else None
            said = "a bearer token is needed" if refusal == 401 else "only this machine may call this server"
            await PlainTextResponse(f"{refusal}: {said}\n", refusal, headers)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> int | None:
        headers = Headers(scope=scope)
        if self._token is None:
            client = (scope.get("client") or ("localhost", 0))[0]
            return None if is_near(client) and not any(name in headers for name in _FORWARDED) else 403
        scheme, _, given = headers.get("authorization", "").partition(" ")
        known = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token.encode())
        return None if known else 401
