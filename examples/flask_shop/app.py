"""The application: endpoints for customers and for people who approve."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from flask import Flask, abort, request
from flask.typing import ResponseReturnValue

import outbox

from .pipeline import Order, orders

DSN = os.environ["DATABASE_URL"]

app = Flask(__name__)
worker = outbox.Worker(orders, DSN, grace=20)


@contextmanager
def transaction() -> Iterator[psycopg.Connection]:
    """Gives a request its connection. The block's end commits, an error rolls back."""
    with psycopg.connect(DSN) as conn:
        yield conn


@app.post("/orders")
def place() -> ResponseReturnValue:
    """Places an order: its row and its workflow are committed together, or neither."""
    new = request.get_json()
    with transaction() as conn:
        row = conn.execute(
            "INSERT INTO shop_orders (customer, cents) VALUES (%s, %s) RETURNING id", (new["customer"], new["cents"])
        ).fetchone()
        assert row is not None
        orders.submit(conn, f"order_{row[0]}", Order(order_id=row[0], cents=new["cents"]), by=new["customer"])
    return {"id": row[0]}, 201


@app.get("/orders/<int:order_id>")
def look(order_id: int) -> ResponseReturnValue:
    with transaction() as conn:
        workflow = orders.get(conn, f"order_{order_id}")  # first: the row is as new as what is told of it
        row = conn.execute("SELECT parcel FROM shop_orders WHERE id = %s", (order_id,)).fetchone()
    if row is None or workflow is None:
        abort(404)
    return {"id": order_id, "status": workflow.status, "parcel": row[0]}


@app.post("/orders/<int:order_id>/<any(approve, reject):answer>")
def decide(order_id: int, answer: str) -> ResponseReturnValue:
    said = request.get_json()
    with transaction() as conn:
        status = outbox.decide(conn, orders, f"order_{order_id}", answer, by=said["by"], reason=said.get("reason"))
    return {"status": status}


@app.errorhandler(outbox.Refused)
def refused(error: outbox.Refused) -> ResponseReturnValue:
    """Answers what the database refuses: no such order, nothing asked, decided by somebody else."""
    return {"detail": str(error)}, 409


@app.errorhandler(outbox.InvalidInput)
def invalid(error: outbox.InvalidInput) -> ResponseReturnValue:
    """Answers what can't be stored, such as a name that is too long."""
    return {"detail": str(error)}, 422


@app.get("/readyz")
def ready() -> ResponseReturnValue:
    """Fails while the worker of this process does not work, such as when the database is away."""
    health = worker.health()
    return ({"ok": True}, 200) if health.ok else ({"detail": health.reason}, 503)


if __name__ == "__main__":
    with worker:
        app.run(port=8000)
