"""A status changed by hand from Python: what the trigger does for an UPDATE, with a name and a reason."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, status_of, value
from kit.waits import trail
from outbox import IllegalChange, InvalidInput, NoWorkflow, UnknownStatus

Conn = psycopg.Connection[Any]


def test_a_workflow_is_moved_and_the_next_stage_has_its_job(conn: Conn, dsn: str) -> None:
    posts = deployed(conn)
    posts.submit(conn, "a", Post(content="risky"))
    drain(posts, dsn)
    assert posts.move(conn, "a", "APPROVED", by="sarah", reason="fine") == "APPROVED"
    assert trail(conn)[-1] == ("APPROVED", "sarah", "fine")
    assert value(conn, "SELECT stage FROM outbox.jobs") == "act"
    version = value(conn, "SELECT version FROM outbox.workflow_states")
    assert posts.move(conn, "a", "APPROVED", by="tom") == "APPROVED", "it has it already"
    assert value(conn, "SELECT version FROM outbox.workflow_states") == version


def test_the_name_and_the_reason_are_of_this_call_only(conn: Conn) -> None:
    posts = deployed(conn)
    posts.allow("RECEIVED", to="ENRICHED")
    posts.submit_many(conn, [("a", Post()), ("b", Post())])
    with conn.transaction():
        conn.execute("SET LOCAL outbox.actor = 'tom'; SET LOCAL outbox.reason = 'tidying'")
        posts.move(conn, "a", "ENRICHED", by="sarah")
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'ENRICHED' WHERE entity_id = 'b'")
    assert [trail(conn, name)[-1] for name in "ab"] == [
        ("ENRICHED", "sarah", "tidying"),
        ("ENRICHED", "tom", "tidying"),
    ]


@pytest.mark.parametrize(
    ("entity", "status", "error"),
    [
        ("a", "COMPLETED", IllegalChange), ("a", "NOWHERE", UnknownStatus), ("a", "", UnknownStatus),
        ("b", "ENRICHED", NoWorkflow), ("", "ENRICHED", InvalidInput), ("a", None, InvalidInput),
        ("a", "x\0", InvalidInput), ("a", "x" * 300, InvalidInput),
    ],
)  # fmt: skip
def test_what_is_refused_changes_nothing(conn: Conn, entity: str, status: Any, error: type[Exception]) -> None:
    posts = deployed(conn)
    posts.submit(conn, "a", Post())
    with pytest.raises(error):
        posts.move(conn, entity, status)
    assert status_of(conn, "a") == "RECEIVED"
    for wrong in ({"by": ""}, {"by": 7}, {"reason": "x\0"}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            posts.move(conn, "a", "ENRICHED", **wrong)  # type: ignore[arg-type]


def test_of_two_at_once_one_moves_it_and_the_other_is_told(conn: Conn, dsn: str) -> None:
    posts = deployed(conn)
    posts.submit(conn, "a", Post(content="risky"))
    drain(posts, dsn)

    def move(to: str) -> str:
        with psycopg.connect(dsn) as mine:
            try:
                return posts.move(mine, "a", to, by=to)
            except IllegalChange as error:
                return f"refused in {error.from_status}"

    with ThreadPoolExecutor() as pool:
        told = sorted(pool.map(move, ["APPROVED", "REJECTED"]))
    assert told in (["APPROVED", "refused in APPROVED"], ["REJECTED", "refused in REJECTED"])
