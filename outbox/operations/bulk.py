"""Does to all workflows of a list what a person does to one: retries, moves or cancels them, in batches.

Each batch is a transaction of the caller's. The list is read along its cursor. A workflow that came to its status after
the beginning is left out: otherwise one that is moved here could come into the list again, and the end might not come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, NamedTuple

import psycopg

from .. import texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..client import lists
from ..client.acting import acting
from ..client.execute import Steps, drive
from ..database import statements
from ..errors import InvalidInput, Refused
from .look import Row

SQL = statements.load("bulk")
Conn = psycopg.Connection[Any]
Act = Literal["retry", "move", "cancel"]

BATCH = 200
"""Workflows of a transaction: it holds their locks, and workers wait, for well below a second."""

COUNTED = 1_000
"""Where counting stops if no number is kept: what is counted is read."""


class Counted(NamedTuple):
    """How many workflows are meant. `whole`: these are all, and else there may be more.

    `at` is the database's time: those that come to their status later are not meant.
    """

    workflows: int
    whole: bool
    at: str


class Done(NamedTuple):
    """What a batch has done. `passed` are those that were passed over, for the reason `why` if one was refused.

    `after` leads to the next batch; None: it is done.
    """

    workflows: int
    passed: int
    why: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Bulk:
    """What is to be done to which workflows. `filters` are those of `Pipeline.find`, and `stage` is that of their job.

    Raises InvalidInput for filters that no list can have, and for none at all.
    """

    act: Act
    filters: dict[str, Any]
    stage: str | None = None
    to_status: str | None = None
    by: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        texts.check_optional(self.stage, "stage", MAX_NAME)
        texts.check_optional(self.to_status, "to_status", MAX_NAME)
        texts.check_optional(self.by, "by", MAX_NAME)
        texts.check_optional(self.reason, "reason", MAX_QUESTION)
        if not any(self.filters.values()):
            raise InvalidInput("filter", "is empty: say which workflows, for example those of a pipeline")

    def page(self, after: str | None, limit: int) -> dict[str, Any]:
        """Returns the parameters of a page of the list."""
        empty = dict.fromkeys(("pipeline", "status", "older", "assignee", "entity", "waits_for", "error", "dead"))
        asked: dict[str, Any] = {**empty, **self.filters, "limit": limit, "after": after}
        asked["dead"] = asked["dead"] or self.act == "retry"
        if not any(asked[name] for name in ("status", "older", "assignee", "entity", "waits_for", "error", "dead")):
            asked["older"] = 0.0  # the list of those that have not ended, which may be few of very many
        return lists.checked(**asked)


def count(conn: Conn, bulk: Bulk) -> Counted:
    """Returns how many workflows are meant: the number that is kept of such, or else up to COUNTED."""
    page = {**bulk.page(None, COUNTED), "most": COUNTED, "stage": bulk.stage}
    if not any(bulk.filters.get(name) for name in ("older", "assignee", "entity", "waits_for")):
        if page["dead"] or page["error"]:
            return _kept(conn, SQL["dead_kept"], page)
        if bulk.stage is None:
            return _kept(conn, SQL["workflows_kept"], page)
    ((workflows, last, at),) = drive(conn, _one(SQL["workflows_count"], page))
    return Counted(int(workflows), last is None, at)


def _kept(conn: Conn, statement: bytes, page: dict[str, Any]) -> Counted:
    ((workflows, at),) = drive(conn, _one(statement, page))
    return Counted(int(workflows), True, at)


def some(conn: Conn, bulk: Bulk, until: datetime, after: str | None, limit: int) -> Done:
    """Does it to the next `limit` workflows of the list, in the caller's transaction.

    Those for which it is not possible are passed over. One that is refused keeps no other from it.
    """
    found, last, _ = drive(conn, lists.rows(bulk.page(after, limit), data=False))
    rows = [dict(zip(_FIELDS, row, strict=False)) for row in found]
    meant = [row for row in rows if row["since"] <= until and bulk.stage in (None, row["stage"])]
    meant = [row for row in meant if row["state"] != "finished"]
    meant.sort(key=lambda row: row["id"])
    done, why = 0, None
    try:
        with conn.transaction():
            done = _do(conn, bulk, meant)
    except Refused:
        for row in meant:
            try:
                with conn.transaction():
                    done += _do(conn, bulk, [row])
            except Refused as error:
                why = str(error)
    return Done(done, len(meant) - done, why, last)


_FIELDS = [each.name for each in fields(lists.Workflow)]
_STATEMENTS: dict[Act, str] = {"retry": "workflows_retry", "move": "workflows_move", "cancel": "workflows_cancel"}


def _do(conn: Conn, bulk: Bulk, rows: Sequence[Row]) -> int:
    if not rows:
        return 0
    params = {
        "ids": [row["id"] for row in rows], "statuses": [row["status"] for row in rows], "to_status": bulk.to_status,
        "by": bulk.by, "reason": bulk.reason,
    }  # fmt: skip
    steps = _one(SQL[_STATEMENTS[bulk.act]], params)
    ((made, *_),) = drive(conn, acting(steps, bulk.by, bulk.reason) if bulk.act == "move" else steps)
    return int(made)


def _one(statement: bytes, params: dict[str, Any]) -> Steps[list[Any]]:
    return (yield statement, params)
