"""Provides handlers that leave a row for each delivery, and reads what a consumer has handled and parked."""

from __future__ import annotations

from typing import Any

import psycopg

from outbox import Delivery

Conn = psycopg.Connection[Any]
INSERT = "INSERT INTO outbox.witness (n, attempt) VALUES (%s, %s)"


async def record(delivery: Delivery) -> None:
    await delivery.connection.execute(INSERT, (delivery.payload["n"], delivery.attempt))


def record_in_a_thread(delivery: Delivery) -> None:
    delivery.connection.execute(INSERT, (delivery.payload["n"], delivery.attempt))


def seen(conn: Conn) -> list[int]:
    return [row[0] for row in conn.execute("SELECT n FROM outbox.witness ORDER BY id")]


def parked(conn: Conn) -> list[str]:
    return [row[0] for row in conn.execute("SELECT reason FROM outbox.parked_deliveries ORDER BY id")]
