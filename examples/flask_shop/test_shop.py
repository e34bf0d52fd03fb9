"""The shop by its endpoints, with its worker, in a database of its own."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from outbox.testing.databases import Databases


@pytest.fixture(scope="module")
def client(outbox_databases: Databases) -> Iterator[FlaskClient]:
    with outbox_databases.clone() as dsn:
        os.environ["DATABASE_URL"] = dsn
        from examples.flask_shop import app, prepare

        prepare.main()
        with app.worker:
            yield app.app.test_client()


def told(answer: TestResponse) -> Any:
    return answer.json


def place(client: FlaskClient, cents: int) -> int:
    answer = client.post("/orders", json={"customer": "ada", "cents": cents})
    assert answer.status_code == 201, answer.text
    return int(told(answer)["id"])


def reaches(client: FlaskClient, order: int, status: str) -> Any:
    """Waits until an order is in a status; returns what is told of it."""
    deadline = time.monotonic() + 60
    while (found := told(client.get(f"/orders/{order}")))["status"] != status:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_a_small_order_is_shipped(client: FlaskClient) -> None:
    assert client.get("/readyz").status_code == 200
    order = place(client, 1_000)
    assert reaches(client, order, "SHIPPED")["parcel"] == f"parcel of order_{order}"


def test_a_person_rejects_a_large_order_and_another_one_is_too_late(client: FlaskClient) -> None:
    order = place(client, 250_000)
    reaches(client, order, "REVIEW")
    answer = client.post(f"/orders/{order}/reject", json={"by": "sarah", "reason": "fraud"})
    assert (answer.status_code, answer.json) == (200, {"status": "REJECTED"})
    late = client.post(f"/orders/{order}/approve", json={"by": "tom"})
    assert late.status_code == 409
    assert "sarah" in told(late)["detail"]
    assert told(client.get(f"/orders/{order}"))["parcel"] is None


def test_what_is_refused_leaves_nothing(client: FlaskClient) -> None:
    assert client.post("/orders", json={"customer": "x" * 5_000, "cents": 1}).status_code == 422
    assert client.post("/orders/4711/approve", json={"by": "sarah"}).status_code == 409
    assert client.get("/orders/4711").status_code == 404
