"""Delegations: another person votes in one's place until an end, and only the one counts."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from kit.pipelines import value
from kit.waits import waiting
from outbox import InvalidInput, VoteRefused, WaitForApproval, approve, delegate, end_delegation, reject

Conn = psycopg.Connection[Any]
TWO = WaitForApproval("Pay it?", options={"approve": "PAID", "reject": "REFUSED"}, approvers={"finance": 2})
FINANCE = ["finance"]
VOTES = "SELECT person, cast_by FROM outbox.approval_votes ORDER BY person"


def tomorrow() -> datetime:
    return datetime.now(UTC) + timedelta(days=1)


def test_a_delegates_vote_counts_for_who_has_delegated(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    with pytest.raises(VoteRefused):
        approve(conn, pipeline, "a", by="eva", groups=[])
    delegate(conn, "eva", until=tomorrow(), by="ann", groups=FINANCE)
    for _ in range(2):
        assert approve(conn, pipeline, "a", by="eva", groups=[]) == "WAITING"
    assert conn.execute(VOTES).fetchall() == [("ann", "eva")]
    # Who has delegated may vote nevertheless: their vote takes the place of the other.
    assert approve(conn, pipeline, "a", by="ann", groups=FINANCE) == "WAITING"
    assert conn.execute(VOTES).fetchall() == [("ann", "ann")]
    with pytest.raises(VoteRefused):
        approve(conn, pipeline, "a", by="eva", groups=[])
    assert approve(conn, pipeline, "a", by="ben", groups=FINANCE) == "PAID"


def test_a_delegate_who_is_an_approver_counts_once(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    delegate(conn, "ben", until=tomorrow(), by="ann", groups=FINANCE)
    for _ in range(2):
        assert approve(conn, pipeline, "a", by="ben", groups=FINANCE) == "WAITING"
    assert reject(conn, pipeline, "a", by="ben", groups=FINANCE) == "WAITING"
    assert conn.execute(VOTES).fetchall() == [("ben", "ben")]


def test_a_delegate_votes_for_who_is_needed(conn: Conn, dsn: str) -> None:
    wait = WaitForApproval("?", options={"approve": "PAID"}, approvers={"finance": 1, "law": 1})
    pipeline = waiting(conn, dsn, wait)
    delegate(conn, "ben", until=tomorrow(), by="ann", groups=["law"])
    assert approve(conn, pipeline, "a", by="cid", groups=FINANCE) == "WAITING"
    assert approve(conn, pipeline, "a", by="ben", groups=FINANCE) == "PAID"
    assert conn.execute(VOTES).fetchall() == [("ann", "ben"), ("cid", "cid")]


def test_a_delegation_ends(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    delegate(conn, "eva", until=tomorrow(), by="ann", groups=FINANCE)
    assert (end_delegation(conn, "eva", by="ann"), end_delegation(conn, "eva", by="ann")) == (True, False)
    with pytest.raises(VoteRefused):
        approve(conn, pipeline, "a", by="eva", groups=[])
    delegate(conn, "eva", until=tomorrow(), by="ann", groups=FINANCE)
    conn.execute("UPDATE outbox.delegations SET until = now() - interval '1 second'")
    with pytest.raises(VoteRefused):
        approve(conn, pipeline, "a", by="eva", groups=[])
    assert value(conn, "SELECT count(*) FROM outbox.approval_votes") == 0


def test_who_asks_neither_delegates_nor_votes_in_anybodys_place(conn: Conn, dsn: str) -> None:
    conn.execute("SET outbox.actor = 'ann'")
    pipeline = waiting(conn, dsn, TWO)
    delegate(conn, "eva", until=tomorrow(), by="ann", groups=FINANCE)
    delegate(conn, "ann", until=tomorrow(), by="ben", groups=FINANCE)
    for person in ("eva", "ann"):
        with pytest.raises(VoteRefused):
            approve(conn, pipeline, "a", by=person, groups=[])
    delegate(conn, "fay", until=tomorrow(), by="eva", groups=[])
    with pytest.raises(VoteRefused):
        approve(conn, pipeline, "a", by="fay", groups=[])  # what was delegated is not passed on


def test_odd_delegations_are_refused(conn: Conn) -> None:
    for to, until, by in (
        ("", tomorrow(), "ann"),
        ("ann", tomorrow(), "ann"),
        ("eva", datetime(2100, 1, 1), "ann"),
        ("eva", "tomorrow", "ann"),
        ("eva", datetime.now(UTC), "ann"),
    ):
        with pytest.raises(InvalidInput):
            delegate(conn, to, until=until, by=by)  # type: ignore[arg-type]
    for by in ("", "a\0", 5):
        with pytest.raises(InvalidInput, match="by"):
            end_delegation(conn, "eva", by=by)  # type: ignore[call-overload]
    for until in ("now() - interval '1 second'", "'infinity'", "NULL"):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            conn.execute(f"SELECT outbox.delegate('eva', {until}, 'ann')".encode())
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        conn.execute("SELECT outbox.delegate('ann', now() + interval '1 day', 'ann')")


def test_on_an_async_connection_it_is_the_same(conn: Conn, dsn: str) -> None:
    async def both() -> bool:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            await delegate(other, "eva", until=tomorrow(), by="ann", groups=FINANCE, reason="holiday")
            return await end_delegation(other, "eva", by="ann")

    assert asyncio.run(both()) is True
