"""Visits the web page as a browser without JavaScript does: follows links, fills in forms, knows what it shows."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from outbox.ui import Person, dashboard

ALL = ("look", "decide", "operate")
HERE = "http://localhost"
OURS = {"sec-fetch-site": "same-origin"}
"""What a browser says with the forms of our own pages."""


@dataclass
class Form:
    """A form of a page: where it leads, its fields as they are at first, and its buttons."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    buttons: list[tuple[str | None, str | None]] = field(default_factory=list)


class Page(HTMLParser):
    """What an answer shows. `text` is what a person reads."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.status: int = answer.status_code
        self.headers = answer.headers
        self.html: str = answer.text
        self.url = str(answer.url)
        self.links: list[str] = []
        self.forms: list[Form] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._texts: list[str] = []
        self._area: str | None = None
        self._select: str | None = None
        self.feed(self.html)
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        elif tag == "form":
            self.forms.append(Form(found.get("action") or self.url, found.get("method") or "get"))
        elif tag == "input" and self.forms and found.get("name"):
            if found.get("type") != "checkbox" or "checked" in found:
                self.forms[-1].fields[found["name"] or ""] = found.get("value") or ""
        elif tag == "textarea":
            self._area = found["name"] or ""
            self.forms[-1].fields[self._area] = ""
        elif tag == "select":
            self._select = found["name"] or ""
        elif tag == "option" and self._select is not None:
            self._option = "selected" in found or self._select not in self.forms[-1].fields, found.get("value")
            if self._option[0] and found.get("value") is not None:
                self.forms[-1].fields[self._select] = found.get("value") or ""
        elif tag == "button":
            self.forms[-1].buttons.append((found.get("name"), found.get("value")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._area is not None:
            # The line break after the tag is not part of the text.
            self.forms[-1].fields[self._area] = self.forms[-1].fields[self._area].removeprefix("\n")
            self._area = None
        elif tag == "select":
            self._select = None

    def handle_data(self, data: str) -> None:
        self._texts.append(data)
        if self._area is not None:
            self.forms[-1].fields[self._area] += data
        elif self._select is not None and data.strip() and self._option[0] and self._option[1] is None:
            self.forms[-1].fields[self._select] = data.strip()

    def form(self, action: str) -> Form:
        """Returns the first form whose action has this in it."""
        return next(form for form in self.forms if action in form.action)

    def link(self, part: str) -> str:
        """Returns the first link that has this in it."""
        return next(link for link in self.links if part in link)


class Visitor:
    """A browser without JavaScript on a dashboard, which is mounted under `at`."""

    def __init__(self, app: Any, at: str = "", host: str = HERE, address: str = "127.0.0.1") -> None:
        self.at, self.host, self.address = at, host, address
        self.app = Starlette(routes=[Mount(at, app=app)]) if at else app

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Sends a request in an event loop of its own."""

        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(self.address, 50000))
            async with httpx.AsyncClient(transport=transport, base_url=self.host) as client:
                return await client.request(method, path, **more)

        return asyncio.run(asked())

    def get(self, path: str, **more: Any) -> Page:
        at = quote(self.at)
        return Page(self.ask("GET", path if path.startswith(at or "/") else at + path, **more))

    def post(self, path: str, fields: dict[str, str], headers: dict[str, str] | None = None) -> Page:
        """Sends a form, and goes where it leads."""
        answer = self.ask("POST", path, data=fields, headers=OURS if headers is None else headers)
        return self.get(answer.headers["location"]) if answer.status_code == 303 else Page(answer)

    def open(self, form: Form) -> Page:
        """Presses the button of a form that only asks."""
        return self.get(f"{urlsplit(form.action).path}?{urlencode(form.fields)}")

    def submit(self, form: Form, button: str | None = None, **fields: str) -> Page:
        """Fills in a form and presses a button: the one of this value, or the only one."""
        pressed = next((name, value) for name, value in form.buttons if button in (None, value))
        sent = {**form.fields, **fields}
        if pressed[0]:
            sent[pressed[0]] = pressed[1] or ""
        path = urlsplit(form.action)
        return self.post(f"{path.path}{'?' if path.query else ''}{path.query}", sent)


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serves an application from a thread, for a real browser. Yields its address."""
    options: dict[str, Any] = {"log_level": "warning", "lifespan": "off", "ws": "none", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def visitor(
    dsn: str, name: str | None = "sarah", may: tuple[str, ...] = ALL, *, at: str = "", **options: Any
) -> Visitor:
    """Returns a visitor who is known as this person; None: nobody is asked who they are."""
    who: Callable[[Any], Person] | None = None if name is None else lambda request: Person(name, may)
    return Visitor(dashboard(dsn, identify=who, **options), at)
