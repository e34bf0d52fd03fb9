"""The page works under any path of a framework: its links lead to itself, and its forms come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fastapi import FastAPI
from litestar import Litestar, asgi
from starlette.applications import Starlette
from starlette.routing import Mount

from kit.browsing import ALL, Visitor
from outbox.ui import Person, dashboard

Conn = psycopg.Connection[Any]
AT = "/admin/outbox"


def fastapi(page: Any) -> Any:
    app = FastAPI()
    app.mount(AT, page)
    return app


def starlette(page: Any) -> Any:
    return Starlette(routes=[Mount("/admin", app=Starlette(routes=[Mount("/outbox", app=page)]))])


def litestar(page: Any) -> Any:
    @asgi(AT, is_mount=True, copy_scope=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await page(scope, receive, send)

    return Litestar([mounted])


@pytest.mark.parametrize("mount", [fastapi, starlette, litestar])
def test_pages_links_and_forms_work_where_it_is_mounted(shop: Conn, dsn: str, mount: Callable[[Any], Any]) -> None:
    visit = Visitor(mount(dashboard(dsn, identify=lambda request: Person("sarah", ALL))))
    page = visit.get(f"{AT}/")
    assert page.status == 200
    assert all(link.startswith((f"{AT}/", "#")) for link in page.links), page.links
    assert 'aria-current="page"' in page.html
    listed = visit.get(page.link("/workflows"))
    one = visit.get(listed.link("entity=review"))
    assert "It was moved." in visit.submit(one.form("/workflow/move"), status="APPROVED").text
    assert visit.get(f"{AT}/static/outbox.js").status == 200
