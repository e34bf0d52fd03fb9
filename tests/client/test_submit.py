"""Submit: in the caller's own transaction, in both colours; what can't be stored is refused before any SQL."""

from __future__ import annotations

import asyncio
import math
import tracemalloc
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from kit.pipelines import Post, deployed, make_posts, status_of, value
from outbox import InvalidInput, NotDeployed, Pipeline
from outbox.documents import MAX_BYTES

Conn = psycopg.Connection[Any]


def deep(levels: int) -> Any:
    nested: Any = []
    for _ in range(levels):
        nested = [nested]
    return nested


def cycle() -> Any:
    ring: list[Any] = []
    ring.append(ring)
    return {"x": ring}


BAD_DATA = {
    "NUL in a value": {"x": "a\0b"},
    "NUL in a key": {"a\0b": 1},
    "lone surrogate": {"x": "\ud800"},
    "lone surrogate in a key": {"\udfff": 1},
    "NaN": {"x": math.nan},
    "Infinity": {"x": [1, {"y": -math.inf}]},
    "too deep": {"x": deep(100_000)},
    "a little too deep": {"x": deep(151)},
    "a cycle": cycle(),
    "bytes": {"x": b"x"},
    "a set": {"x": {1, 2}},
    "a naive date": {"x": datetime(2026, 1, 1)},
    "an unknown type": {"x": object()},
    "null": None,
    "a list": [],
    "nothing": "",
    "too large": {"x": "y" * (MAX_BYTES + 1)},
    "an integer beyond what Python reads": {"x": 10**5000},
}
BAD_IDS: dict[str, Any] = {
    "empty": "", "too long": "x" * 513, "NUL": "a\0b", "lone surrogate": "\ud800", "a float": 5.5, "a truth value": True, "none": None, "bytes": b"x",
}  # fmt: skip
ODD_IDS = [
    "x" * 512,
    "\U0001f600" * 512,
    "'",
    '"',
    ";",
    "a\nb",
    "%s",
    "{}",
    "\\",
    "\u202e",
    " ",
    "Foo",
    "foo",
    "{a,b}",
    "NULL",
    "null",
]


@pytest.fixture
def plain(conn: Conn) -> Pipeline[Any]:
    return deployed(conn, Pipeline("plain", initial="NEW"))


@pytest.mark.parametrize("data", BAD_DATA.values(), ids=BAD_DATA.keys())
def test_data_that_cannot_be_stored_is_refused_and_the_transaction_stays_usable(
    conn: Conn, plain: Pipeline[Any], data: Any
) -> None:
    with conn.transaction():
        plain.submit(conn, "before", {})
        with pytest.raises(InvalidInput, match=r"^data: "):
            plain.submit(conn, "a", data)
        with pytest.raises(InvalidInput, match=r"^data: "):
            plain.submit_many(conn, [("b", {}), ("a", data)])
        plain.submit(conn, "after", {})
    assert value(
        conn, "SELECT array_agg(entity_id ORDER BY id) FROM outbox.workflow_states WHERE entity_id <> 'b'"
    ) == [
        "before",
        "after",
    ]


@pytest.mark.parametrize("entity", BAD_IDS.values(), ids=BAD_IDS.keys())
def test_an_entity_id_that_cannot_be_stored_is_refused(conn: Conn, plain: Pipeline[Any], entity: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^entity_id: "):
        plain.submit(conn, entity, {})


def test_odd_entity_ids_are_kept_as_they_are(conn: Conn, plain: Pipeline[Any]) -> None:
    assert plain.submit_many(conn, ((entity, {"id": entity}) for entity in ODD_IDS)) == len(ODD_IDS)
    rows = conn.execute("SELECT entity_id, metadata ->> 'id' FROM outbox.workflow_states").fetchall()
    assert sorted(row[0] for row in rows) == sorted(ODD_IDS)
    assert all(entity == kept for entity, kept in rows)
    for entity in ODD_IDS:
        assert not plain.submit(conn, entity, {}).created


def test_odd_but_valid_data_is_stored_as_it_is(conn: Conn, plain: Pipeline[Any]) -> None:
    odd = {
        "integer": 10**400, "zero": 0, "text": "\\u0000 is no NUL, nor is \\ or \" or '", "empty": "", "": 1, "NaN": "Infinity",
        "deep": deep(140), "null": None, "float": 0.1, "emoji": "\U0001f600", "big": "x" * 1_000_000,
    }  # fmt: skip
    plain.submit(conn, "a", odd)
    text = value(conn, "SELECT metadata::text FROM outbox.workflow_states")
    assert plain.load(text) == odd


@pytest.mark.parametrize("data", [{"content": 5}, {"content": None}, {"enrichment": []}, 5, None, "text", [], Pipeline])
def test_data_that_does_not_fit_the_model_is_refused_at_submit(conn: Conn, data: Any) -> None:
    posts = deployed(conn)
    with pytest.raises(InvalidInput, match=r"^data: "):
        posts.submit(conn, "a", data)
    broken = Post()
    broken.content = 5  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match=r"^data: "):
        posts.submit(conn, "a", broken)


def test_submitting_twice_returns_the_workflow_that_is_there_and_says_so(conn: Conn) -> None:
    posts = deployed(conn)
    first = posts.submit(conn, "a", Post(content="one"))
    again = posts.submit(conn, "a", Post(content="two"))
    assert (first.created, again.created) == (True, False)
    assert (first.id, first.status) == (again.id, again.status)
    assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "one"
    assert posts.submit_many(conn, [("a", Post()), ("b", Post()), ("b", Post())]) == 1


def test_submit_lives_and_dies_with_the_callers_transaction(conn: Conn, dsn: str) -> None:
    posts = deployed(conn)
    with psycopg.connect(dsn) as mine:
        posts.submit(mine, "a", Post())
        mine.rollback()
        posts.submit(mine, "b", Post())
    assert value(conn, "SELECT array_agg(entity_id) FROM outbox.workflow_states") == ["b"]


def test_submit_is_awaited_on_an_async_connection(conn: Conn, dsn: str) -> None:
    posts = deployed(conn)

    async def scenario() -> tuple[bool, bool, int]:
        async with await psycopg.AsyncConnection.connect(dsn) as mine:
            first = await posts.submit(mine, "a", Post())
            again = await posts.submit(mine, "a", Post())
            return first.created, again.created, await posts.submit_many(mine, [("b", Post()), ("a", Post())])

    assert asyncio.run(scenario()) == (True, False, 1)
    assert status_of(conn, "b") == "RECEIVED"


def test_the_callers_row_factory_does_not_matter(conn: Conn, dsn: str) -> None:
    posts = deployed(conn)
    with psycopg.connect(dsn, row_factory=dict_row) as mine:
        assert posts.submit(mine, "a", Post()).entity_id == "a"


def test_a_pipeline_that_is_not_deployed_is_named_with_the_command(conn: Conn) -> None:
    posts = make_posts()
    with conn.transaction():
        with pytest.raises(NotDeployed, match=r'pipeline "posts" is not deployed.*outbox deploy'):
            posts.submit(conn, "a", Post())
        with pytest.raises(NotDeployed, match="outbox deploy"):
            posts.submit_many(conn, [("a", Post())])
        assert value(conn, "SELECT 1") == 1, "the transaction stays usable"


@pytest.mark.parametrize("wrong", [None, "postgresql:///x", object()])
def test_what_is_no_psycopg_connection_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match=r"must be a connection or session of psycopg|is a DSN: pass a connection"):
        make_posts().submit(wrong, "a", Post())


def test_items_of_a_bulk_submit_must_be_pairs(conn: Conn, plain: Pipeline[Any]) -> None:
    with pytest.raises(InvalidInput, match="each item is"):
        plain.submit_many(conn, ["a", "bb", 5])  # type: ignore[list-item]


def test_bulk_submit_takes_any_number_in_bounded_memory(conn: Conn, plain: Pipeline[Any]) -> None:
    tracemalloc.start()
    try:
        assert plain.submit_many(conn, ((f"e{n}", {"text": "x" * 1000}) for n in range(20_000))) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 15_000_000, "20 MB of data went through"
