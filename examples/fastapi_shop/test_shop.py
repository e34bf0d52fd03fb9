"""The shop by its endpoints, with its worker, in a database of its own."""

import os
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from examples.fastapi_shop.pipeline import orders
from outbox.testing.databases import Databases

DRIVER = os.environ.get("SHOP_DRIVER", "asyncpg")


@pytest.fixture(scope="module")
def dsn(outbox_databases: Databases) -> Iterator[str]:
    with outbox_databases.clone() as dsn:
        yield dsn


@pytest.fixture(scope="module")
def client(dsn: str) -> Iterator[TestClient]:
    os.environ["DATABASE_URL"] = dsn.replace("postgresql://", f"postgresql+{DRIVER}://")  # which the settings read
    from examples.fastapi_shop import app, prepare

    prepare.main()
    with TestClient(app.app) as client:
        yield client
    with TestClient(app.app) as again:  # the same worker, in another event loop
        assert again.get("/readyz").json()["reason"] is None


def place(client: TestClient, cents: int) -> int:
    answer = client.post("/orders", json={"customer": "ada", "cents": cents})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


def reaches(client: TestClient, order: int, status: str) -> Any:
    """Waits until an order is in a status; returns what is told of it."""
    deadline = time.monotonic() + 60
    while (told := client.get(f"/orders/{order}").json())["status"] != status:
        assert time.monotonic() < deadline, told
        time.sleep(0.02)
    return told


def test_a_small_order_is_shipped(client: TestClient) -> None:
    assert client.get("/readyz").status_code == 200
    assert client.get("/livez").status_code == 200
    order = place(client, 1_000)
    assert reaches(client, order, "SHIPPED")["parcel"] == f"parcel of order_{order}"


def test_a_person_approves_a_large_order_and_another_one_is_too_late(client: TestClient, dsn: str) -> None:
    order = place(client, 250_000)
    assert reaches(client, order, "REVIEW")["parcel"] is None
    answer = client.post(f"/orders/{order}/approve", json={"by": "sarah"})
    assert (answer.status_code, answer.json()) == (200, {"status": "APPROVED"})
    late = client.post(f"/orders/{order}/reject", json={"by": "tom", "reason": "fraud"})
    assert late.status_code == 409
    assert "sarah" in late.json()["detail"]
    reaches(client, order, "SHIPPED")
    with psycopg.connect(dsn) as conn:
        by = {change.to_status: change.actor for change in orders.history(conn, f"order_{order}")}
    assert (by["NEW"], by["APPROVED"]) == ("ada", "sarah")


def test_what_is_refused_leaves_neither_an_order_nor_a_workflow(client: TestClient, dsn: str) -> None:
    counts = "SELECT (SELECT count(*) FROM shop_orders), (SELECT count(*) FROM outbox.workflow_states)"
    with psycopg.connect(dsn, autocommit=True) as conn:
        before = conn.execute(counts).fetchone()
        assert client.post("/orders", json={"customer": "x" * 5_000, "cents": 1}).status_code == 422
        assert client.post("/orders/4711/approve", json={"by": "sarah"}).status_code == 409
        assert client.get("/orders/4711").status_code == 404
        assert conn.execute(counts).fetchone() == before
