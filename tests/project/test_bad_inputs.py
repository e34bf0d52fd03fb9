"""Bad inputs: what a caller gives is refused before any SQL, by name; what arises inside is cleaned. See tools/bad_inputs.py."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import math
import os
import re
import select
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict, Field, Json, computed_field, model_validator

from kit.commands import Outbox
from kit.pipelines import Post, deployed, drain, status_of, value
from kit.servers import PostgresServer
from outbox import (
    Backoff,
    Consumer,
    DefinitionError,
    Go,
    InvalidInput,
    Pipeline,
    Reject,
    Retention,
    Retry,
    Run,
    SchemaError,
    SettingsError,
    Spawned,
    Worker,
)
from outbox.database import migrations
from outbox.documents import MAX_BYTES
from outbox.engine import batch, commit
from tools import bad_inputs

Conn = psycopg.Connection[Any]
ROOT = Path(__file__).parents[2]


def one_stage(handler: Callable[..., Any], *, data: Any = Post, **options: Any) -> Pipeline[Any]:
    """Return a pipeline NEW -> DONE whose only stage is `handler`, which has one attempt."""
    pipeline: Pipeline[Any] = Pipeline("p", data=data, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to="DONE", **{"retry": Backoff(attempts=1), **options})(handler)
    pipeline.allow("NEW", to="MOVED")
    return pipeline


def errors(conn: Conn) -> dict[str, str]:
    return dict(conn.execute("SELECT entity_id, error FROM outbox.dead_jobs").fetchall())


def usable(conn: Conn) -> None:
    """The transaction is open, and nothing in it has failed."""
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    assert value(conn, "SELECT 1") == 1


# What a caller submits.


class Number(BaseModel):
    x: int


class Anything(BaseModel):
    x: Any


class Ratio(BaseModel):
    x: float


class Hidden(BaseModel):
    secret: int = Field(exclude=True)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


def ring() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def deep(levels: int) -> Any:
    nested: Any = []
    for _ in range(levels):
        nested = [nested]
    return nested


OF_A_MODEL: dict[str, tuple[type[BaseModel], Any]] = {
    "an integer of 5,000 digits": (Number, {"x": 10**5_000}),
    "an integer of 5,000 digits, of any type": (Anything, Anything(x=10**5_000)),
    "an integer of 400 digits for a float": (Ratio, {"x": 10**400}),
    "a lone surrogate": (Anything, {"x": json.loads('"\\ud800"')}),
    "NUL": (Anything, {"x": "a\0b"}),
    "NaN": (Anything, {"x": [math.nan]}),
    "bytes that are no text": (Anything, {"x": b"\xff"}),
    "a cycle": (Anything, {"x": ring()}),
    "nested 100,000 deep": (Anything, {"x": deep(100_000)}),
    "an unknown type": (Anything, {"x": object()}),
    "a type that can't be printed": (Number, {"x": Unprintable()}),
    "100 MB": (Anything, {"x": "y" * 100_000_000}),
    "what the model can't read back": (Hidden, Hidden(secret=1)),
}


@pytest.mark.parametrize(("model", "data"), OF_A_MODEL.values(), ids=OF_A_MODEL.keys())
def test_data_of_a_model_that_cannot_be_stored_or_read_back_is_refused_at_submit(
    conn: Conn, model: type[BaseModel], data: Any
) -> None:
    pipeline = deployed(conn, Pipeline("p", data=model, initial="NEW"))
    with conn.transaction():
        with pytest.raises(InvalidInput, match=r"^data: ") as caught:
            pipeline.submit(conn, "a", data)
        assert len(str(caught.value)) < 600
        with pytest.raises(InvalidInput, match=r"^data: "):
            pipeline.submit_many(conn, [("a", data)])
        usable(conn)
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 0


def test_100_mb_are_refused_with_the_limit_and_without_many_copies(conn: Conn) -> None:
    plain = deployed(conn, Pipeline("plain", initial="NEW"))
    data = {"x": "y" * 100_000_000}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match=rf"^data: 100,000,008 bytes of JSON; the limit is {MAX_BYTES:,}\."):
            plain.submit(conn, "a", data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 333_000_000


class Aliased(BaseModel):
    model_config = ConfigDict(extra="forbid")

    first: str = Field(alias="firstName")
    note: str | None = Field(None, validation_alias="noteIn", serialization_alias="noteOut")
    raw: Json[list[int]] = Field("[1]", validate_default=True)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def length(self) -> int:
        return len(self.first)


def test_a_model_with_aliases_computed_fields_and_json_goes_round(conn: Conn, dsn: str) -> None:
    seen: list[Any] = []

    def work(run: Run[Aliased]) -> Aliased:
        seen.append(run.data)
        return run.data

    pipeline = deployed(conn, one_stage(work, data=Aliased))
    data = Aliased(firstName="ada", noteIn="n", raw="[1, 2]")
    pipeline.submit(conn, "a", data)
    pipeline.submit(conn, "b", {"firstName": "bob"})
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('p', 'c', '{\"firstName\": \"cy\"}')"
    )
    drain(pipeline, dsn)
    assert errors(conn) == {}
    assert data in seen
    assert sorted(item.first for item in seen) == ["ada", "bob", "cy"]
    assert pipeline.load(value(conn, "SELECT metadata::text FROM outbox.workflow_states WHERE entity_id = 'a'")) == data


def test_large_documents_are_sent_in_statements_that_postgres_takes(conn: Conn) -> None:
    plain = deployed(conn, Pipeline("plain", initial="NEW"))
    tracemalloc.start()
    try:
        assert plain.submit_many(conn, ((f"e{n}", {"x": "y" * 2**20}) for n in range(60))) == 60
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000_000, "a gigabyte in one statement would cost the caller its connection"
    assert value(conn, "SELECT sum(length(metadata ->> 'x')) FROM outbox.workflow_states") == 60 * 2**20


@pytest.mark.parametrize("items", [None, 5, [5], [("a",)], [("a", {}, 1)], [Unprintable()]])
def test_items_that_are_no_pairs_are_refused_by_name(conn: Conn, items: Any) -> None:
    plain = deployed(conn, Pipeline("plain", initial="NEW"))
    with conn.transaction():
        with pytest.raises(InvalidInput, match=r"^items: "):
            plain.submit_many(conn, items)
        usable(conn)


def test_a_bad_item_far_down_leaves_the_transaction_usable(conn: Conn, dsn: str) -> None:
    plain = deployed(conn, Pipeline("plain", initial="NEW"))
    items = [*((f"e{n}", {}) for n in range(2_500)), ("\ud800", {})]
    with conn.transaction():
        with pytest.raises(InvalidInput, match=r"^entity_id: "):
            plain.submit_many(conn, items)
        usable(conn)

    async def on_an_async_one() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as mine:
            with pytest.raises(InvalidInput, match=r"^entity_id: "):
                await plain.submit_many(mine, items)
            with pytest.raises(InvalidInput, match=r"^data: "):
                await plain.submit(mine, "a", {"x": math.nan})
            assert await (await mine.execute("SELECT 1")).fetchone() == (1,)

    asyncio.run(on_an_async_one())


# What a handler raises.


def changed(after: Any) -> Retry:
    error = Retry(after=1)
    error.after = after
    return error


class Bare(Retry):
    def __init__(self) -> None:
        pass


class Nameless(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


RAISED: dict[str, BaseException] = {
    "StopIteration": StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration(),
    "a group of SystemExit": BaseExceptionGroup("both", [SystemExit(1), KeyboardInterrupt()]),
    "RecursionError": RecursionError(),
    "text that exits": Nameless(),
    "NUL and a lone surrogate": ValueError("a\0b\ud800"),
    "a text of 30 MB": ValueError("x" * 30_000_000),
    "Reject without a text": Reject(""),
    "Reject with a number": Reject(5),  # type: ignore[arg-type]
    "Reject with NUL and a lone surrogate": Reject("a\0b\ud800"),
    "Reject with 30 MB": Reject("x" * 30_000_000),
    "Retry after soon": changed("soon"),
    "Retry after NaN": changed(math.nan),
    "Retry after -1": changed(-1),
    "Retry after 1e300": changed(1e300),
    "Retry after 400 digits": changed(10**400),
    "Retry after True": changed(True),
    "Retry without its own making": Bare(),
}


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_whatever_a_handler_raises_becomes_text_and_harms_no_other_job(conn: Conn, dsn: str, colour: str) -> None:
    """All of them in one batch."""
    other = ValueError("another failure, in the same batch")

    async def work(run: Run[Post]) -> None:
        raise RAISED.get(run.entity_id, other)

    def work_sync(run: Run[Post]) -> None:
        raise RAISED.get(run.entity_id, other)

    twice = Backoff(first=0, attempts=2)
    pipeline = deployed(conn, one_stage(work if colour == "async" else work_sync, retry=twice))
    pipeline.submit_many(conn, [(what, Post()) for what in ("before", *RAISED, "after")])
    drain(pipeline, dsn)
    found = errors(conn)
    assert found.keys() == {"before", *RAISED, "after"}, "each used up its attempts"
    assert {what: len(text) for what, text in found.items() if len(text) >= 10_000} == {}
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


# What a handler returns and publishes.


async def coroutine() -> None: ...


async def stream() -> Any:
    yield 1


RETURNED: dict[str, tuple[Callable[[], Any], str]] = {
    "a coroutine": (coroutine, "returned a coroutine"),
    "a generator": (lambda: (n for n in [1]), "returned a generator"),
    "an async generator": (stream, "returned a async_generator"),
    "a coroutine as data": (lambda: Go("DONE", coroutine()), "returned a coroutine"),
    "what run.spawn returns": (lambda: Spawned("orders", "a"), "returned what run.spawn returns"),
    "a list as status": (lambda: Go(["DONE"]), "may not go to ['DONE']"),  # type: ignore[arg-type]
    "a status with a lone surrogate": (lambda: Go("\ud800"), "may not go to '\\ud800'"),
    "a status that can't be printed": (lambda: Go(Unprintable()), "may not go to a value of type"),  # type: ignore[arg-type]
    "an object": (object, "data that can't be stored"),
    "NUL": (lambda: Anything(x="a\0b"), "NUL"),
    "a lone surrogate": (lambda: Anything(x="\ud800"), "surrogates not allowed"),
    "NaN": (lambda: {"x": math.nan}, "NaN and Infinity are not JSON"),
    "a cycle": (lambda: Anything(x=ring()), "Circular reference"),
    "nested 100,000 deep": (lambda: Anything(x=deep(100_000)), "can't be written as JSON"),
    "40 MB": (lambda: Anything(x="y" * 40_000_000), "the limit is"),
}


@pytest.mark.parametrize("transaction", [False, True], ids=["alone", "transaction"])
def test_what_a_handler_may_not_return_is_an_error_that_names_the_stage(
    conn: Conn, dsn: str, transaction: bool
) -> None:
    def work(run: Run[Any]) -> Any:
        return RETURNED[run.entity_id][0]() if run.entity_id in RETURNED else None

    pipeline = deployed(conn, one_stage(work, data=Anything, transaction=transaction))
    pipeline.submit_many(conn, [(what, {"x": 1}) for what in ("before", *RETURNED, "after")])
    drain(pipeline, dsn)
    assert (status_of(conn, "before"), status_of(conn, "after")) == ("DONE", "DONE")
    found = errors(conn)
    assert found.keys() == RETURNED.keys()
    assert {what: text for what, text in found.items() if "stage p.work" not in text} == {}
    assert {what: found[what] for what, (_, words) in RETURNED.items() if words not in found[what]} == {}


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "a topic with NUL": ("topic", {"topic": "t\0"}),
    "an empty topic": ("topic", {"topic": ""}),
    "a topic of 256 characters": ("topic", {"topic": "x" * 256}),
    "a topic that is no text": ("topic", {"topic": None}),
    "a key with a lone surrogate": ("key", {"key": json.loads('"\\ud800"')}),
    "a key of 1,001 characters": ("key", {"key": "x" * 1_001}),
    "a key that is a number": ("key", {"key": 5}),
    "a payload with NUL": ("payload", {"payload": {"x": "a\0b"}}),
    "a payload with a lone surrogate": ("payload", {"payload": ["\udfff"]}),
    "a payload with NaN": ("payload", {"payload": math.nan}),
    "a payload of 5,000 digits": ("payload", {"payload": 10**5_000}),
    "a payload that is a cycle": ("payload", {"payload": ring()}),
    "a payload nested 100,000 deep": ("payload", {"payload": deep(100_000)}),
    "a payload of an unknown type": ("payload", {"payload": object()}),
    "a payload of 40 MB": ("payload", {"payload": "y" * 40_000_000}),
    "a header's name with a lone surrogate": ("headers", {"headers": {"\ud800": "x"}}),
    "a header's name with NUL": ("headers", {"headers": {"a\0": "x"}}),
    "a header with bytes": ("headers", {"headers": {"x": b"x"}}),
    "headers that are a text": ("headers", {"headers": "x"}),
    "headers that are a list": ("headers", {"headers": [1]}),
}


@pytest.mark.parametrize("transaction", [False, True], ids=["alone", "transaction"])
def test_a_message_that_cannot_be_stored_is_refused_by_name_and_the_handler_goes_on(
    conn: Conn, dsn: str, transaction: bool
) -> None:
    refused: dict[str, str] = {}

    async def work(run: Run[Post]) -> None:
        for what, (_, wrong) in PUBLISHED.items():
            try:
                run.publish(**{"topic": "t", "payload": 1, **wrong})
            except InvalidInput as error:
                refused[what] = error.field
        run.publish("t", {"n": 10**400})

    pipeline = deployed(conn, one_stage(work, transaction=transaction))
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    assert refused == {what: field for what, (field, _) in PUBLISHED.items()}
    assert status_of(conn, "a") == "DONE"
    assert conn.execute("SELECT topic, payload FROM outbox.messages").fetchall() == [("t", {"n": 10**400})]


def test_messages_of_one_attempt_that_postgres_could_not_take_at_once_are_refused(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        if run.entity_id == "a":
            for _ in range(3):
                run.publish("t", "y" * 30_000_000)
        elif run.entity_id == "c":
            for _ in range(40):
                run.publish("t", None, headers={"h": "ü" * 900_000})

    pipeline = deployed(conn, one_stage(work))
    pipeline.submit_many(conn, [("a", Post()), ("b", Post()), ("c", Post())])
    drain(pipeline, dsn)
    assert "what one attempt publishes and spawns has more than 67,108,864 bytes" in errors(conn)["c"]
    assert "payload: what one attempt publishes and spawns has more than 67,108,864 bytes" in errors(conn)["a"]
    assert (status_of(conn, "a"), status_of(conn, "b")) == ("NEW", "DONE")


def test_large_results_are_committed_in_statements_that_postgres_takes(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is lowered: a gigabyte of documents would say the same, and take a minute."""
    monkeypatch.setattr(batch, "BATCH_SIZE", 2_500_000)
    sizes: list[int] = []
    finish = commit.finish
    monkeypatch.setattr(
        commit,
        "finish",
        lambda jobs, **how: sizes.append(sum(outcome.size for _, outcome in jobs)) or finish(jobs, **how),
    )

    def work(run: Run[Post]) -> Post:
        run.publish("t", "y" * 500_000)
        return Post(content="y" * (3_000_000 if run.entity_id == "e3" else 500_000))

    pipeline = deployed(conn, one_stage(work))
    pipeline.submit_many(conn, [(f"e{n}", Post()) for n in range(8)])
    assert drain(pipeline, dsn).counts.done == 8
    assert sum(sizes) > 10_000_000
    assert max(sizes) < 2_500_000 + 3_600_000
    assert sorted(sizes)[-2] <= 2_500_000, "only what is too large by itself is more"


# What a handler does to the connection that it was given.


MISUSED: dict[str, tuple[str, str]] = {
    "COMMIT": ("COMMIT", "ended the transaction"),
    "ROLLBACK": ("ROLLBACK", "ended the transaction"),
    "SET TRANSACTION READ ONLY": ("SET TRANSACTION READ ONLY", "read-only transaction"),
    "ends its own session": ("SELECT pg_terminate_backend(pg_backend_pid())", "AdminShutdown"),
    "deletes its job": ("DELETE FROM outbox.jobs WHERE workflow_id = %(id)s", "changed its own workflow or job"),
    "deletes its workflow": ("DELETE FROM outbox.workflow_states WHERE id = %(id)s", "changed its own workflow or job"),
    "changes its status": (
        "UPDATE outbox.workflow_states SET current_status = 'MOVED' WHERE id = %(id)s",
        "changed its own workflow or job",
    ),
    "changes its data": (
        "UPDATE outbox.workflow_states SET metadata = '{}' WHERE id = %(id)s",
        "changed its own workflow or job",
    ),
    "leaves it aborted": ("SELECT 1/0", "InFailedSqlTransaction"),
}


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_handler_that_misuses_its_connection_changes_nothing_and_the_next_one_is_well(
    conn: Conn, dsn: str, colour: str
) -> None:
    ran: list[str] = []

    async def work(run: Run[Post]) -> None:
        ran.append(run.entity_id)
        if run.entity_id in MISUSED:
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                await run.connection.execute(MISUSED[run.entity_id][0].encode(), {"id": run.workflow_id})

    def work_sync(run: Run[Post]) -> None:
        ran.append(run.entity_id)
        if run.entity_id in MISUSED:
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                run.connection.execute(MISUSED[run.entity_id][0].encode(), {"id": run.workflow_id})

    handler = work if colour == "async" else work_sync
    pipeline = deployed(conn, one_stage(handler, transaction=True, concurrency=1))
    turns = [turn for what in MISUSED for turn in (what, f"after {what}")]
    pipeline.submit_many(conn, [(turn, Post()) for turn in turns])
    drain(pipeline, dsn)
    assert ran == turns
    assert {turn: status_of(conn, turn) for turn in turns} == {
        turn: "NEW" if turn in MISUSED else "DONE" for turn in turns
    }
    found = errors(conn)
    assert {what: found[what] for what, (_, words) in MISUSED.items() if not re.search(words, found[what])} == {}
    data = conn.execute("SELECT DISTINCT metadata ->> 'content' FROM outbox.workflow_states").fetchall()
    assert data == [("hello",)]


@pytest.mark.parametrize("method", ["close", "commit", "rollback"])
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_handler_that_ends_its_connection_dies_by_its_own_words(
    conn: Conn, dsn: str, method: str, colour: str
) -> None:
    """The connection is gone, and what the handler says counts all the same: Reject is Reject."""

    async def work(run: Run[Post]) -> None:
        if run.entity_id != "b":
            with contextlib.suppress(psycopg.ProgrammingError):
                await getattr(run.connection, method)()
            if run.entity_id == "rejected":
                raise Reject("no such customer")
            await run.connection.execute("SELECT 1")

    def work_sync(run: Run[Post]) -> None:
        if run.entity_id != "b":
            with contextlib.suppress(psycopg.ProgrammingError):
                getattr(run.connection, method)()
            if run.entity_id == "rejected":
                raise Reject("no such customer")
            run.connection.execute("SELECT 1")

    handler = work if colour == "async" else work_sync
    pipeline = deployed(conn, one_stage(handler, transaction=True, concurrency=1))
    pipeline.submit_many(conn, [("rejected", Post()), ("a", Post()), ("b", Post())])
    drain(pipeline, dsn)
    assert status_of(conn, "b") == "DONE"
    assert errors(conn)["rejected"] == "no such customer"
    if method == "close":
        assert "the connection is closed" in errors(conn)["a"]
    else:
        assert status_of(conn, "a") == "DONE", "psycopg has refused it, and nothing has happened"


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_handler_may_have_its_rows_as_it_likes_and_the_next_one_has_them_as_ever(
    conn: Conn, dsn: str, colour: str
) -> None:
    seen: list[Any] = []

    async def work(run: Run[Post]) -> None:
        seen.append(await (await run.connection.execute("SELECT 1 AS n")).fetchone())
        run.connection.row_factory, run.connection.cursor_factory = dict_row, psycopg.AsyncRawCursor

    def work_sync(run: Run[Post]) -> None:
        seen.append(run.connection.execute("SELECT 1 AS n").fetchone())
        run.connection.row_factory, run.connection.cursor_factory = dict_row, psycopg.RawCursor

    handler = work if colour == "async" else work_sync
    pipeline = deployed(conn, one_stage(handler, transaction=True, concurrency=1))
    pipeline.submit_many(conn, [("a", Post()), ("b", Post())])
    assert drain(pipeline, dsn).counts.done == 2
    assert seen == [(1,), (1,)]


# Rows edited by hand.


class Exits(BaseModel):
    how: str = ""

    @model_validator(mode="after")
    def exits(self) -> Exits:
        if self.how == "exit":
            raise SystemExit(3)
        if self.how == "key":
            raise KeyError("how")
        return self


@pytest.mark.parametrize("how", ["exit", "key"])
@pytest.mark.parametrize("transaction", [False, True], ids=["alone", "transaction"])
def test_a_validator_that_raises_whatever_ends_its_job_and_no_worker(
    conn: Conn, dsn: str, how: str, transaction: bool
) -> None:
    async def work(run: Run[Exits]) -> None: ...

    pipeline = deployed(conn, one_stage(work, data=Exits, transaction=transaction))
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) "
        "VALUES ('p', 'a', jsonb_build_object('how', %s::text)), ('p', 'b', '{}')",
        (how,),
    )
    drain(pipeline, dsn)
    assert status_of(conn, "b") == "DONE"
    assert {"exit": "SystemExit: 3", "key": "KeyError: 'how'"}[how] in errors(conn)["a"]


DOCUMENTS = {
    "nested 1,000 deep": ('{"enrichment": {"x": %s}}' % ("[" * 1_000 + "]" * 1_000), True),
    "nested 400 deep": ('{"enrichment": {"x": %s}}' % ("[" * 400 + "]" * 400), True),
    "an integer of 5,000 digits": ('{"enrichment": {"x": 1%s}}' % ("0" * 5_000), True),
    "1e100000": ('{"enrichment": {"x": 1e100000}}', True),
    "1e400": ('{"enrichment": {"x": 1e400}}', False),
    "escapes of a terminal": ('{"content": "\\u001b[31m\\u202e"}', False),
}


@pytest.mark.parametrize(("document", "dead"), DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_document_that_python_cannot_read_is_dead_with_the_reason_and_can_be_looked_at(
    conn: Conn, dsn: str, outbox: Outbox, document: str, dead: bool
) -> None:
    posts = deployed(conn)
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('posts', 'a', %s)", (document,)
    )
    posts.submit(conn, "b", Post())
    drain(posts, dsn)
    assert status_of(conn, "b") == "COMPLETED"
    assert ("a" in errors(conn)) == dead
    assert all(
        text.startswith("the stored metadata doesn't fit the pipeline's data: ") for text in errors(conn).values()
    )
    shown = outbox("show", "a").out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert outbox("show", "a", "--json").json["entity_id"] == "a"
    outbox("dead", "--json")
    if dead:
        assert outbox("retry", "a").out == "a runs again\n"


@pytest.mark.parametrize("at", ["0001-01-01", "4713-01-01 BC", "9999-12-31", "294276-01-01"])
def test_a_job_that_is_due_in_any_year_is_run_or_waited_for_and_can_be_looked_at(
    conn: Conn, dsn: str, outbox: Outbox, at: str
) -> None:
    posts = deployed(conn)
    posts.submit(conn, "a", Post())
    conn.execute("UPDATE outbox.jobs SET run_at = %s, due = false", (at,))
    posts.submit(conn, "b", Post())
    year = re.match(r"\d+", at)
    assert year is not None
    assert year.group() in outbox("show", "a").out
    assert year.group() in outbox("show", "a", "--json").json["job"]["run_at"]
    json.loads(outbox("status", "--json").out, parse_constant=pytest.fail)
    outbox("doctor", code=None)
    drain(posts, dsn)
    assert status_of(conn, "b") == "COMPLETED"
    assert status_of(conn, "a") == ("RECEIVED" if at in ("9999-12-31", "294276-01-01") else "COMPLETED")


REFUSED = {
    "a job that is never due": ("UPDATE outbox.jobs SET run_at = 'infinity'", "jobs_run_at_finite"),
    "a job that was always due": ("UPDATE outbox.jobs SET run_at = '-infinity'", "jobs_run_at_finite"),
    "an empty entity id": (
        "INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', '')",
        "entity_id_length",
    ),
    "an entity id of 1,000 characters": (
        "INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', repeat('x', 1000))",
        "entity_id_length",
    ),
    "an empty topic": ("INSERT INTO outbox.messages (topic, payload) VALUES ('', '1')", "topic_not_empty"),
    "a pipeline that is SQL": (
        "INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('''; DROP TABLE outbox.jobs; --', 'x')",
        "unknown pipeline",
    ),
    "a status that is SQL": (
        "UPDATE outbox.workflow_states SET current_status = '''; DROP TABLE outbox.jobs; --'",
        "posts.*RECEIVED.*DROP TABLE",
    ),
}


def test_what_cannot_be_is_refused_of_plain_sql_too(conn: Conn) -> None:
    posts = deployed(conn)
    posts.submit(conn, "a", Post())
    refused = dict.fromkeys(REFUSED, "")
    for what, (statement, _) in REFUSED.items():
        try:
            conn.execute(statement.encode())
        except psycopg.Error as error:
            refused[what] = str(error)
        assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE due OR run_at <= now()") == 1, what
    assert {what: refused[what] for what, (_, words) in REFUSED.items() if not re.search(words, refused[what])} == {}


@pytest.mark.parametrize("change", ["attempt = -5", "attempt = 2000000000", "entered = -1", "owner = 77, claimed_at = now()",
                                    "stage = 'nobody'", "pipeline = 'nobody'"])  # fmt: skip
def test_a_job_that_was_changed_by_hand_harms_no_other(conn: Conn, dsn: str, change: str) -> None:
    posts = deployed(conn)
    posts.submit(conn, "a", Post())
    conn.execute(f"UPDATE outbox.jobs SET {change}".encode())
    posts.submit(conn, "b", Post())
    drain(posts, dsn)
    assert status_of(conn, "b") == "COMPLETED"
    assert status_of(conn, "a") == ("RECEIVED" if "nobody" in change else "COMPLETED"), "left for who knows it, or run"


# Definitions and options.


def defined(**wrong: Any) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW")
    pipeline.stage(**{"name": "work", "on": "NEW", "to": "DONE", **wrong})(lambda run: None)


DEFINED: dict[str, tuple[Callable[[], Any], str]] = {
    "an endless attempt count": (lambda: Backoff(attempts=10**5_000), "Backoff attempts"),
    "a first wait of 5,000 digits": (lambda: Backoff(first=10**5_000), "Backoff first"),
    "a wait that can't be printed": (lambda: Backoff(max=Unprintable()), "Backoff max"),  # type: ignore[arg-type]
    "a negative jitter": (lambda: Backoff(jitter=-0.1), "Backoff jitter"),
    "a factor below 1": (lambda: Backoff(factor=0.5), "Backoff factor"),
    "a name of 5,000 digits": (lambda: Pipeline(10**5_000, initial="NEW"), "pipeline"),  # type: ignore[call-overload]
    "no next status": (lambda: defined(to=None), "to="),
    "a number as next status": (lambda: defined(to=5), "to="),
    "a list of lists": (lambda: defined(to=[["DONE"]]), "to="),
    "a number as final": (lambda: Pipeline("p", initial="NEW", final=5), "final"),  # type: ignore[call-overload]
    "a retry that is none": (lambda: defined(retry=5), "retry="),
    "a transaction that is a text": (lambda: defined(transaction="no"), "transaction="),
    "a concurrency of 5,000 digits": (lambda: defined(concurrency=10**5_000), "concurrency="),
    "a timeout of NaN": (lambda: defined(timeout=math.nan), "timeout"),
    "a rate of 5,000 digits": (lambda: defined(rate=10**5_000), "rate="),
    "a rate that can't be printed": (lambda: defined(rate=Unprintable()), "rate="),
    "a partition that raises": (lambda: defined(partition=lambda d: 1 / 0), "partition="),
    "no pipelines": (lambda: Worker(5, "dbname=x"), "pipelines"),  # type: ignore[arg-type]
    "pipelines that are none": (lambda: Worker([5], "dbname=x"), "pipelines"),  # type: ignore[list-item]
    "a lease of NaN": (lambda: Worker(Pipeline("p", initial="NEW"), "dbname=x", lease=math.nan), "lease"),
    "a lease below its heartbeat": (lambda: Worker(Pipeline("p", initial="NEW"), "dbname=x", lease=0.1), "lease"),
    "a lease of 5,000 digits": (lambda: Worker(Pipeline("p", initial="NEW"), "dbname=x", lease=10**5_000), "lease"),
    "a negative grace": (lambda: Worker(Pipeline("p", initial="NEW"), "dbname=x", grace=-1), "grace"),
    "a retry after 5,000 digits": (lambda: Retry(after=10**5_000), "after"),
    "a retry after True": (lambda: Retry(after=True), "after"),
    "a negative age to keep": (lambda: Retention(history=-1), "Retention history"),
}


@pytest.mark.parametrize(("wrong", "words"), DEFINED.values(), ids=DEFINED.keys())
def test_a_definition_that_cannot_work_is_refused_by_name(wrong: Callable[[], Any], words: str) -> None:
    with pytest.raises((DefinitionError, InvalidInput), match=f"^(stage work: )?{words}") as caught:
        wrong()
    assert len(str(caught.value)) < 300


# The command line.


@pytest.fixture
def there(conn: Conn) -> Pipeline[Any]:
    return deployed(conn, Pipeline("plain", initial="NEW"))


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_stream_that_was_closed_from_the_start_is_no_traceback(
    conn: Conn, there: Pipeline[Any], outbox: Outbox, closed: str
) -> None:
    """As under some schedulers: nothing is lost by it, and what can be said is one line."""
    shut = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}[closed]
    command = f"exec {sys.executable} -m outbox submit --pipeline plain {shut}"
    with outbox.process(program=("-c", f"import os; os.execvp('sh', ['sh', '-c', {command!r}])")) as process:
        done = process.done(b'{"entity_id": "a"}\n')
    if closed == "stdin":
        assert (done.code, done.err.count("\n")) == (1, 1), done
        assert "standard input is closed" in done.err
    else:
        assert (done.code, done.err) == (0, "")
        assert status_of(conn, "a") == "NEW"


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["show", "a"], ["migrate", "--sql"], ["doctor"]])
def test_output_that_is_not_read_or_finds_no_room_is_no_traceback(
    conn: Conn, there: Pipeline[Any], outbox: Outbox, command: list[str]
) -> None:
    there.submit(conn, "a", {})
    reading, writing = os.pipe()
    os.close(reading)
    for output, words in ((writing, ""), (os.open("/dev/full", os.O_WRONLY), "No space left on device")):
        with outbox.process(*command, stdout=output, env={"PYTHONUNBUFFERED": ""}) as process:
            os.close(output)
            done = process.done()
        assert done.err.count("\n") == bool(words), done.err
        assert words in done.err
        assert done.code == 1


def test_a_file_that_cannot_be_read_is_one_line(there: Pipeline[Any], outbox: Outbox, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    os.mkfifo(file)
    assert "For a pipe or standard input, give -" in outbox("submit", "--pipeline", "plain", str(file), code=2).err


# The database that is named.


def test_a_dsn_that_is_given_and_empty_is_not_taken_for_the_bundled_postgres(tmp_path: Path) -> None:
    """As in --dsn "$UNSET"."""
    for arguments in (["status"], ["migrate"], ["doctor"]):
        said = Outbox(None).fails("--dsn", "", *arguments, env={"OUTBOX_HOME": str(tmp_path / "home")})
        assert said == "outbox: dsn is given but empty"
    assert not (tmp_path / "home").exists()
    with pytest.raises(SettingsError, match="dsn"):
        Consumer("q", print, dsn="", amqp_url="amqp://localhost/")


class Older:
    """A proxy before Postgres that says it is Postgres 14."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._forward, args=(self._listening.accept()[0],), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server, contextlib.suppress(OSError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65_536)
                    if not data:
                        return
                    said = re.sub(rb"(server_version\0)\d\d", rb"\g<1>14", data)
                    (server if source is client else client).sendall(said)


@pytest.fixture
def older(server: PostgresServer, dsn: str) -> Iterator[str]:
    proxy = Older(server.port)
    yield dsn.replace(f":{server.port}", f":{proxy.port}")
    proxy.close()


def test_a_server_that_is_too_old_is_refused_with_the_version_that_is_needed(older: str, tmp_path: Path) -> None:
    wanted = "the server is Postgres 14; Outbox needs Postgres 15 or newer"
    for command in (["migrate"], ["status"], ["submit", "--pipeline", "plain"]):
        assert Outbox(older).fails(*command, input="") == f"outbox: {wanted}"
    with pytest.raises(SchemaError, match=wanted):
        asyncio.run(Worker(one_stage(lambda run: None), older).run())
    with pytest.raises(SchemaError, match=wanted):
        migrations.apply(older)


# The table.


def test_the_page_is_what_the_table_says() -> None:
    assert (ROOT / "docs" / "bad-inputs.md").read_text(encoding="utf-8") == bad_inputs.page(), "run: make docs"


def test_every_test_that_the_table_names_is_there_and_every_one_here_is_in_it() -> None:
    named = {test for row in bad_inputs.ROWS for test in row.tests}
    there = {
        f"{file.relative_to(ROOT).as_posix()}::{node.name}"
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert sorted(named - there) == []
    ours = {test for test in there if test.startswith("tests/project/test_bad_inputs.py::") and "the_table" not in test}
    assert sorted(ours - named) == []
    assert all(row.tests for row in bad_inputs.ROWS)
