"""The shops on FastAPI (with asyncpg and with psycopg) and on Flask, by their endpoints and public names only."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from kit.databases import OWNER
from kit.servers import wait_for

ROOT = Path(__file__).parents[2]
KINDS = ["fastapi asyncpg", "fastapi psycopg", "flask"]


class Client:
    """Speaks to either application."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def get(self, path: str) -> tuple[int, Any]:
        answer = self._client.get(path)
        return answer.status_code, answer.json if isinstance(answer.json, dict | None) else answer.json()

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        answer = self._client.post(path, json=body)
        return answer.status_code, answer.json if isinstance(answer.json, dict | None) else answer.json()

    def place(self, cents: int, customer: str = "ada") -> int:
        status, told = self.post("/orders", customer=customer, cents=cents)
        assert status == 201, told
        return int(told["id"])

    def reaches(self, order: int, status: str) -> Any:
        wait_for(lambda: self.get(f"/orders/{order}")[1]["status"] == status, what=f"order {order} is {status}")
        return self.get(f"/orders/{order}")[1]


@contextmanager
def imported(package: str, url: str) -> Iterator[Any]:
    """Imports an example's application as if for the first time."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith(f"examples.{package}")]:
            del sys.modules[name]

    forget()
    os.environ["DATABASE_URL"] = url
    try:
        importlib.import_module(f"examples.{package}.prepare").main()
        yield importlib.import_module(f"examples.{package}.app")
    finally:
        del os.environ["DATABASE_URL"]
        forget()


@pytest.fixture
def url(empty_dsn: str) -> str:
    return empty_dsn.replace(f"{OWNER}@", "postgres@")  # who owns the whole database, as on a laptop


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, url: str) -> Iterator[Client]:
    package, _, driver = request.param.partition(" ")
    if package == "flask":
        with imported("flask_shop", url) as shop, shop.worker:
            yield Client(shop.app.test_client())
    else:
        with imported("fastapi_shop", url.replace("postgresql://", f"postgresql+{driver}://")) as shop:
            with TestClient(shop.app) as client:
                yield Client(client)
            with TestClient(shop.app) as again:  # the same worker, in another event loop
                assert again.get("/readyz").json()["reason"] is None


def test_a_shop(client: Client, url: str) -> None:
    assert client.get("/readyz")[0] == 200
    small, large, refused = client.place(1_000), client.place(250_000), client.place(250_000)
    assert client.reaches(small, "SHIPPED")["parcel"] == f"parcel of order_{small}"
    for order in (large, refused):
        assert client.reaches(order, "REVIEW")["parcel"] is None
    # A person approves, and another one is too late.
    assert client.post(f"/orders/{large}/approve", by="sarah") == (200, {"status": "APPROVED"})
    assert client.post(f"/orders/{refused}/reject", by="sarah", reason="fraud") == (200, {"status": "REJECTED"})
    status, told = client.post(f"/orders/{refused}/approve", by="tom")
    assert status == 409
    assert "sarah" in told["detail"]
    assert client.reaches(large, "SHIPPED")["parcel"] == f"parcel of order_{large}"
    # What is refused leaves nothing: neither an order nor a workflow.
    assert client.post("/orders/4711/approve", by="sarah")[0] == 409
    assert client.post("/orders", customer="x" * 5_000, cents=1)[0] == 422
    assert client.get("/orders/4711")[0] == 404
    with psycopg.connect(url) as conn:
        (counts,) = conn.execute(
            "SELECT (SELECT count(*) FROM shop_orders), (SELECT count(*) FROM outbox.workflow_states)"
        ).fetchall()
        assert counts == (3, 3)
        people = (
            "SELECT array_agg(DISTINCT actor ORDER BY actor) FROM outbox.state_changes WHERE actor NOT LIKE 'worker%'"
        )
        assert conn.execute(people).fetchone() == (["ada", "sarah"],)
