"""Time that is let pass: each kind of time to come is moved, or it is said why it isn't."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, one_stage, status_of, value
from outbox import (
    Backoff,
    Go,
    InvalidInput,
    LinkRefused,
    Pipeline,
    Run,
    Tick,
    WaitForApproval,
    approval_link,
    delegate,
    deploy,
    use_link,
)  # fmt: skip
from outbox.testing import advance, drain
from outbox.testing.moving import MOVED, NOT_MOVED

Conn = psycopg.Connection[Any]
HOUR = timedelta(hours=1)
TIMES = """
SELECT c.relname || '.' || a.attname FROM pg_attribute AS a
JOIN pg_class AS c ON c.oid = a.attrelid
WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND a.atttypid = 'timestamptz'::regtype AND NOT a.attisdropped
"""


@pytest.fixture
def inside(conn: Conn) -> Conn:
    conn.autocommit = False
    return conn


def test_every_time_in_the_schema_is_moved_or_it_is_said_why_not(conn: Conn) -> None:
    there = {name for (name,) in conn.execute(TIMES)}
    assert there == MOVED | NOT_MOVED.keys(), "name a new column in outbox/testing/moving.py"
    assert not MOVED & NOT_MOVED.keys()


def test_every_column_that_is_moved_is_in_the_answer_of_a_statement(conn: Conn) -> None:
    from outbox.testing.moving import SQL

    told = {column for statement in SQL.values() for column, _ in conn.execute(statement, {"by": 1})}
    assert told == MOVED


def test_delays_and_back_off_come_earlier(inside: Conn) -> None:
    def work(run: Run[Post]) -> Go[Post]:
        if run.attempt == 1:
            raise KeyError("x")
        return Go("LATER", after=3 * HOUR)

    p = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    p.stage("work", on="NEW", to="LATER", retry=Backoff(first=3600, max=3600))(work)
    p.stage("later", on="LATER", to="DONE")(lambda run: None)
    deploy(inside, p)
    p.submit(inside, "a", Post())
    drain(p, inside, raise_errors=False)
    drain(p, inside)
    assert value(inside, "SELECT attempt FROM outbox.jobs") == 1
    assert advance(inside, HOUR) == {"jobs.run_at": 1}
    drain(p, inside)
    assert status_of(inside, "a") == "LATER"
    advance(inside, 2 * HOUR)
    drain(p, inside)
    assert status_of(inside, "a") == "LATER"
    advance(inside, HOUR)
    drain(p, inside)
    assert status_of(inside, "a") == "DONE"


def asking(inside: Conn, **options: Any) -> Pipeline[Any]:
    p: Pipeline[Any] = Pipeline("p", initial="NEW", final={"YES", "NO", "LATE"})
    p.stage("ask", on="NEW", to="ASKED")(
        lambda run: WaitForApproval("Sure?", options={"approve": "YES", "reject": "NO"}, **options)
    )
    p.allow("ASKED", to={"YES", "NO", "LATE"})
    deploy(inside, p)
    p.submit(inside, "a", {})
    drain(p, inside)
    return p


def test_reminders_escalations_and_deadlines_come_earlier(inside: Conn) -> None:
    p = asking(
        inside,
        deadline=3 * HOUR,
        on_deadline="LATE",
        remind_every=HOUR,
        assignee="sarah",
        escalate_after=2 * HOUR,
        escalate_to="tom",
    )
    assert advance(inside, HOUR) == {
        "jobs.deadline": 1, "approvals.deadline": 1, "approvals.remind_at": 1, "approvals.escalate_at": 1,
    }  # fmt: skip
    drain(p, inside)
    topics = "SELECT array_agg(topic ORDER BY id) FROM outbox.messages WHERE topic ~ 'reminder|escalated'"
    assert value(inside, topics) == ["p.approval.reminder"]
    advance(inside, HOUR)
    drain(p, inside)
    assert value(inside, "SELECT assignee FROM outbox.approvals") == "tom"
    advance(inside, HOUR)
    drain(p, inside)
    assert status_of(inside, "a") == "LATE"


def test_links_and_delegations_end_earlier(inside: Conn) -> None:
    asking(inside, assignee="sarah")
    keys, until = ["k" * 40], datetime.now(UTC) + 2 * HOUR
    link = approval_link(inside, "p", "a", person="sarah", until=until, keys=keys)
    delegate(inside, "tom", until=until, by="sarah")
    assert advance(inside, HOUR) == {"approval_links.until": 1, "delegations.until": 1}
    advance(inside, HOUR)
    with pytest.raises(LinkRefused):
        use_link(inside, link, "approve", keys=keys)


def test_schedules_tick_earlier(inside: Conn) -> None:
    ticks: list[Any] = []
    p: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})
    p.stage("work", on="NEW", to="DONE")(lambda run: None)

    @p.every("0 3 * * *")
    def nightly(tick: Tick) -> None:
        ticks.append(tick.at)
        if len(ticks) == 1:
            raise KeyError("x")

    deploy(inside, p)
    drain(p, inside)
    assert ticks == []
    assert advance(inside, timedelta(days=1)) == {"schedules.next_at": 1}
    drain(p, inside, raise_errors=False)
    assert advance(inside, HOUR) == {"schedules.next_at": 1, "schedules.retry_at": 1}
    drain(p, inside)
    assert len(ticks) == 2


def test_start_times_of_rates_and_parked_messages_come_earlier(inside: Conn) -> None:
    p = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    p.stage("work", on="NEW", to="DONE", rate="1/minute", partition="content", total_rate="9/second")(lambda run: None)
    deploy(inside, p)
    p.submit(inside, "a", Post())
    drain(p, inside)
    inside.execute(
        "INSERT INTO outbox.parked_messages (relay, id, message_id, topic, created_at, reason, waits_until)"
        " VALUES ('r', 1, outbox.uuid7(), 't', now(), 'no queue', now())"
    )
    assert advance(inside, HOUR) == {
        "limits.next_at": 1,
        "partition_rates.next_at": 1,
        "parked_messages.waits_until": 1,
    }
    p.submit(inside, "b", Post())
    drain(p, inside)
    assert status_of(inside, "b") == "DONE"


def test_a_dsn_and_an_async_connection(conn: Conn, dsn: str) -> None:
    p = one_stage(lambda run: None)
    p.deadline("NEW", to="MOVED", hours=2)
    deploy(conn, p)
    p.submit(conn, "a", Post())
    assert advance(dsn, HOUR) == {"jobs.deadline": 1}

    async def awaited() -> dict[str, int]:
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            return await advance(other, HOUR)

    assert asyncio.run(awaited()) == {"jobs.deadline": 1}
    drain(p, dsn)
    assert status_of(conn, "a") in ("MOVED", "DONE")


@pytest.mark.parametrize("by", [-HOUR, 3600, timedelta(days=10**6)])
def test_what_is_no_time_to_pass_is_refused(conn: Conn, by: Any) -> None:
    with pytest.raises(InvalidInput, match="by"):
        advance(conn, by)
