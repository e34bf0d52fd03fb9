"""Reads what the page shows and no command does. All else comes from `operations.look` and the doctor."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import psycopg

from ..database import statements
from ..operations.look import Row, rows

SQL = statements.load("facts")
Conn = psycopg.Connection[Any]

KNOWN = 100_000
"""Bytes of stored data that are compared with other data."""


def moves_of(conn: Conn, workflow: Row) -> Row:
    """Returns the legal `moves` from a workflow's status, whether that is `final`, and whether it is `cancellable`."""
    (found,) = rows(conn, SQL["moves_of"], pipeline=workflow["pipeline"], status=workflow["current_status"])
    cancelled = found.pop("cancelled")
    return {**found, "cancellable": cancelled is not None and not found["final"]}


def moves_within(conn: Conn, pipeline: str, status: str | None) -> list[str]:
    """Returns the statuses to which some workflow of a pipeline may be moved, or those in one of its statuses."""
    return [row["status"] for row in rows(conn, SQL["moves_within"], pipeline=pipeline, status=status)]


def pipeline_map(conn: Conn, pipeline: str) -> Row | None:
    """Returns what the graph of a pipeline is drawn from; None if it isn't deployed."""
    return next(iter(rows(conn, SQL["pipeline_map"], pipeline=pipeline)), None)


def pauses(conn: Conn) -> list[Row]:
    """Returns the stages that are paused."""
    return rows(conn, SQL["pauses"])


def flow_of_hour(conn: Conn) -> dict[tuple[str, str], list[int]]:
    """Returns how many workflows left each status in each minute of the last hour, the oldest first."""
    found: dict[tuple[str, str], list[int]] = {}
    for row in rows(conn, SQL["flow_of_hour"]):
        if 0 <= row["ago"] < 60:
            found.setdefault((row["pipeline"], row["status"]), [0] * 60)[59 - row["ago"]] += int(row["went"])
    return found


def changes_seen(conn: Conn) -> Row:
    """Returns marks by which two looks are compared: what has another mark has changed."""
    (found,) = rows(conn, SQL["changes_seen"])
    return found


def workflows_seen(conn: Conn, ids: Collection[str]) -> dict[str, str]:
    """Returns a mark of each of these workflows, as `changes_seen` does."""
    return {row["id"]: row["mark"] for row in rows(conn, SQL["workflows_seen"], ids=list(ids))} if ids else {}


def data_known(conn: Conn, workflow: Row, limit: int) -> list[Row]:
    """Returns what questions and answers tell of a workflow's data, in their order."""
    return rows(conn, SQL["data_known"], id=workflow["id"], limit=limit, most=KNOWN)[::-1]
