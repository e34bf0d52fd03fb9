"""What a test finds in the database, and how a failure reads."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import ANY

import psycopg
import pytest

from kit.pipelines import Post, make_posts
from outbox import Pipeline, deploy
from outbox.testing import (
    Published,
    assert_published,
    assert_submitted,
    drain,
    history,
    published,
    submitted,
)  # fmt: skip

Conn = psycopg.Connection[Any]


@pytest.fixture
def posts(conn: Conn) -> Pipeline[Post]:
    made = make_posts()
    deploy(conn, made)
    made.submit(conn, "post_1", Post(content="hello"))
    made.submit(conn, "post_2", Post(content="risky", enrichment={"a": 1}))
    return made


def test_what_was_submitted_is_found_by_its_fields(conn: Conn, posts: Pipeline[Post]) -> None:
    assert [each.entity_id for each in submitted(conn, posts)] == ["post_1", "post_2"]
    (found,) = submitted(conn, posts, content="risky", enrichment={"a": 1}, status="RECEIVED")
    assert (found.entity_id, found.data.content) == ("post_2", "risky")
    assert submitted(conn, posts, entity_id="post_1", content=ANY)[0].entity_id == "post_1"
    assert submitted(conn, posts, content="x") == []
    assert submitted(conn, posts, unknown=None) == []


def test_a_failure_lists_what_is_there(conn: Conn, posts: Pipeline[Post]) -> None:
    with pytest.raises(AssertionError) as failed:
        assert_submitted(conn, posts, content="x", status="RECEIVED")
    assert str(failed.value) == (
        "a workflow with status='RECEIVED', content='x': 0 of 2 match\n"
        "these are there:\n"
        '  post_1: RECEIVED, {"content": "hello", "enrichment": null}\n'
        '  post_2: RECEIVED, {"content": "risky", "enrichment": {"a": 1}}'
    )
    assert len(assert_submitted(conn, posts)) == 2
    assert assert_submitted(conn, posts, count=0, content="x") == []
    with pytest.raises(AssertionError, match=r"1 workflow: 2 of 2 match\nthese match:\n  post_1"):
        assert_submitted(conn, posts, count=1)


def test_published_messages_are_found_by_topic_key_and_payload(conn: Conn, posts: Pipeline[Post], dsn: str) -> None:
    with pytest.raises(AssertionError, match=r"^a message: 0 of 0 match$"):
        assert_published(conn)
    drain(posts, dsn)
    conn.execute("INSERT INTO outbox.messages (topic, payload, headers) VALUES ('odd', '3', '{\"a\": \"b\"}')")
    assert published(conn, "posts.enriched", entity_id="post_1") == [
        Published("posts.enriched", "post_1", {"entity_id": "post_1"})
    ]
    assert [each.topic for each in published(conn)] == ["posts.enriched", "posts.enriched", "odd"]
    assert assert_published(conn, "odd", count=1)[0].headers == {"a": "b"}
    assert published(conn, "posts.enriched", key="post_2") == assert_published(conn, key="post_2")
    with pytest.raises(
        AssertionError, match=r"topic='posts.enriched', entity_id='x': 0 of 3 match\n(.*\n){3}  odd: key None, 3"
    ):
        assert_published(conn, "posts.enriched", entity_id="x")


def test_a_long_list_is_cut_and_odd_texts_are_printable(conn: Conn, posts: Pipeline[Post]) -> None:
    posts.submit_many(conn, [(f"many_{n}", Post(content="\x1b[31m" + "x" * 500)) for n in range(30)])
    with pytest.raises(AssertionError) as failed:
        assert_submitted(conn, posts, content="none")
    assert str(failed.value).endswith("  … and 12 more")
    assert "\x1b" not in str(failed.value)


def test_the_history_of_an_entity(conn: Conn, posts: Pipeline[Post], dsn: str) -> None:
    drain(posts, dsn)
    assert [change.to_status for change in history(conn, posts, "post_1")] == [
        "RECEIVED",
        "ENRICHED",
        "APPROVED",
        "COMPLETED",
    ]
    assert history(conn, posts, "none") == []


def test_each_is_awaited_on_an_async_connection(posts: Pipeline[Post], dsn: str) -> None:
    async def test() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            assert len(await submitted(conn, posts)) == 2
            assert len(await assert_submitted(conn, posts, content="risky")) == 1
            assert await published(conn) == await assert_published(conn, count=0) == []
            assert len(await history(conn, posts, "post_1")) == 1

    asyncio.run(test())
