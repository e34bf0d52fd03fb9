"""An entity is named by a text, or by the key of its row: a UUID or an int, as text."""

from __future__ import annotations

import enum
from typing import Any
from uuid import UUID

import asyncpg.pgproto.pgproto
import psycopg
import pytest

import outbox
from kit.pipelines import Post, deployed, drain, status_of
from outbox import InvalidInput, Pipeline, Run, WaitForApproval, WaitForSignal, testing

Conn = psycopg.Connection[Any]
KEY = UUID("0190a5a0-0000-7000-8000-000000000001")

lines = Pipeline("lines", data=Post, initial="NEW", final={"DONE"})
lines.allow("NEW", to="DONE")
posts = Pipeline("posts", data=Post, initial="NEW", final={"DONE"}, cancelled="GONE")


@posts.stage("ask", on="NEW", to="WAITING")
async def ask(run: Run[Post]) -> Any:
    run.spawn(lines, KEY, Post(content="x"))
    run.spawn(lines, 7, Post(content="x"))
    if run.data.content == "signal":
        return WaitForSignal("payment", to="DONE")
    return WaitForApproval("Ship it?", options={"approve": "DONE", "reject": "GONE"})


posts.allow("WAITING", to={"DONE", "GONE"})


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("key", "text"),
    [(KEY, str(KEY)), (5, "5"), (-3, "-3"), (2**70, str(2**70)), (Number.ONE, "1"),
     (asyncpg.pgproto.pgproto.UUID(str(KEY)), str(KEY)), ("5", "5")],
)  # fmt: skip
def test_every_call_takes_a_key(conn: Conn, dsn: str, key: Any, text: str) -> None:
    deployed(conn, lines)
    deployed(conn, posts)
    assert posts.submit(conn, key, Post(content="approval")).entity_id == text
    assert not posts.submit(conn, text, Post(content="x")).created
    assert posts.submit_many(conn, [(key, Post(content="x")), (99, Post(content="signal"))]) == 1
    assert outbox.why(conn, posts, key).cause
    drain(posts, dsn)
    assert status_of(conn, str(KEY)) is not None
    assert outbox.approve(conn, posts, key) == "DONE"
    assert outbox.signal(conn, posts, 99, "payment").status == "DONE"
    found = posts.get(conn, key)
    assert found is not None
    assert found.status == "DONE"
    assert [change.to_status for change in posts.history(conn, key)] == ["NEW", "WAITING", "DONE"]
    assert testing.assert_submitted(conn, posts, entity_id=key, count=1) == testing.submitted(
        conn, posts, entity_id=text
    )
    assert len(testing.history(conn, posts, key)) == 3
    assert testing.attempt(posts, "ask", Post(content="x"), entity_id=key).run.entity_id == text
    posts.submit(conn, 100, Post(content="approval"))
    assert posts.cancel(conn, 100) == "GONE"
    assert outbox.shard(key, 8) == outbox.shard(text, 8)


@pytest.mark.parametrize("wrong", [True, False, None, 1.0, b"a", [], "", "\0", 10**600, -(10**512)])
def test_what_names_no_entity_is_refused_before_any_sql(conn: Conn, wrong: Any) -> None:
    deployed(conn, posts)
    for call in (
        lambda: posts.submit(conn, wrong, Post(content="x")),
        lambda: posts.submit_many(conn, [(wrong, Post(content="x"))]),
        lambda: posts.cancel(conn, wrong),
        lambda: posts.get(conn, wrong),
        lambda: posts.history(conn, wrong),
        lambda: outbox.signal(conn, posts, wrong, "payment"),
        lambda: outbox.approve(conn, posts, wrong),
        lambda: outbox.why(conn, posts, wrong),
        lambda: testing.attempt(posts, "ask", Post(content="x"), entity_id=wrong),
    ):
        with pytest.raises(InvalidInput, match="entity_id"):
            call()
