"""Large contents: stored in parts, which contents share; there as long as something refers to them, and no longer."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

import outbox
from kit.pipelines import QUICK, deployed, drain, run_one, status_of, value
from outbox import (
    Backoff,
    Blob,
    Change,
    Go,
    HandlerError,
    InvalidInput,
    LeaseLost,
    NotFound,
    Pipeline,
    Question,
    Retention,
    Run,
    SyncRun,
    WaitForApproval,
)
from outbox.database.link import PLANNING, Link
from outbox.database.steps import perform
from outbox.engine import blobs, checkpoint, retention
from outbox.engine.apart import Apart
from outbox.engine.retention import SQL

Conn = psycopg.Connection[Any]
MB = 2**20
ONCE = Backoff(attempts=1)


class Case(BaseModel):
    history: Blob | None = None


def cases(handler: Callable[..., Any], **options: Any) -> Pipeline[Case]:
    """NEW -> ASKED (-> NEW again) -> DONE."""
    pipeline: Pipeline[Case] = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to={"ASKED", "DONE"}, **{"retry": QUICK, **options})(handler)
    pipeline.allow("ASKED", to={"NEW", "DONE"})
    return pipeline


def incompressible(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def sweep(conn: Conn, hours: float = 0) -> None:
    """Does what maintenance does, as if so many hours were over."""
    for name in ("retention_blob_uses", "retention_blobs"):
        conn.execute(SQL[name], {"hours": hours, "limit": retention.BATCH})


def counts(conn: Conn) -> tuple[int, int, int]:
    """Uses, blobs and parts."""
    (row,) = conn.execute(
        "SELECT (SELECT count(*) FROM outbox.blob_uses), (SELECT count(*) FROM outbox.blobs), "
        "(SELECT count(*) FROM outbox.blob_parts)"
    ).fetchall()
    return row  # type: ignore[no-any-return]


def cut(content: bytes, *sizes: int) -> list[bytes]:
    """Cuts a content that comes in pieces of these sizes, and then the rest."""
    parts, file, found = blobs.Parts(), io.BytesIO(content), []
    for size in sizes:
        found += parts.feed(file.read(size))
    return found + parts.feed(file.read()) + parts.rest()


# Parts


@pytest.mark.parametrize(
    "content", [b"", b"x", incompressible(MB), json.dumps([{"n": n} for n in range(99_999)]).encode()]
)
def test_parts_do_not_depend_on_the_pieces_and_make_up_the_content(content: bytes) -> None:
    whole = cut(content)
    assert b"".join(whole) == content
    assert cut(content, 1, 7, 300_000, 5) == whole
    assert all(len(part) <= blobs.MOST_PART for part in whole)
    assert all(len(part) >= blobs.LEAST_PART for part in whole[:-1])


def conversation(turns: int, most: int = 10_000) -> list[dict[str, str]]:
    """Messages of half a kilobyte to `most` bytes."""
    chance = random.Random(7)
    words = "".join(chance.choices('abcdefghij "\\{}[],', k=10_000))
    return [
        {"role": ("user", "assistant")[n % 2], "content": words[: chance.randrange(500, most)] + str(n)}
        for n in range(turns)
    ]


@pytest.mark.parametrize("changed", ["appended", "prepended", "in the middle"])
def test_a_content_that_has_changed_in_one_place_shares_its_other_parts(changed: str) -> None:
    before = conversation(200)
    new = {"role": "user", "content": "new " * 300}
    at = {"appended": 200, "prepended": 0, "in the middle": 100}[changed]
    old, now = (set(cut(json.dumps(each).encode())) for each in (before, [*before[:at], new, *before[at:]]))
    assert len(now) > 40
    assert len(now - old) <= 6


# run.once


def large(text: str) -> dict[str, str]:
    made.append(text)
    return {"text": text * 300_000}


made: list[str] = []


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    made.clear()


@pytest.mark.parametrize("is_async", [True, False])
def test_a_large_result_is_kept_and_comes_back(conn: Conn, dsn: str, is_async: bool) -> None:
    seen: list[Any] = []

    async def work(run: Run[Any]) -> None:
        seen.append(await run.once("key", large, "ab\u00e4"))
        if run.attempt == 1:
            raise ValueError("after the call")

    def plainly(run: SyncRun[Any]) -> None:
        seen.append(run.once("key", large, "ab\u00e4"))
        if run.attempt == 1:
            raise ValueError("after the call")

    run_one(conn, dsn, work if is_async else plainly)
    assert seen == [{"text": "ab\u00e4" * 300_000}] * 2
    assert made == ["ab\u00e4"]
    assert counts(conn)[:2] == (1, 1)
    kept = "SELECT result IS NULL AND convert_from(outbox.blob(encode(blob, 'hex')), 'UTF8')::jsonb = %s FROM outbox.checkpoints"
    assert value(conn, kept, json.dumps(seen[0]))


def test_a_result_of_64_mb_is_kept_and_a_larger_one_is_refused(conn: Conn, dsn: str) -> None:
    seen: list[int] = []

    async def work(run: Run[Any]) -> None:
        seen.append(len(await run.once("fits", lambda: "x" * (checkpoint.MAX_RESULT - 2))))
        await run.once("larger", lambda: "x" * (checkpoint.MAX_RESULT - 1))

    run_one(conn, dsn, work, retry=ONCE)
    assert seen == [checkpoint.MAX_RESULT - 2]
    assert "InvalidInput: once('larger'): 67,108,865 bytes of JSON" in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_a_small_result_touches_no_blob(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Any]) -> None:
        await run.once("key", lambda: "x" * 60_000)

    run_one(conn, dsn, work)
    assert counts(conn) == (0, 0, 0)


def test_results_that_grow_cost_storage_linear_in_their_length(conn: Conn, dsn: str) -> None:
    """A conversation of 200 turns, each of which keeps all of it."""
    messages = conversation(200, most=5_000)

    async def work(run: Run[Any]) -> None:
        for turn in range(1, 201):
            await run.once(f"turn {turn}", lambda turn=turn: messages[:turn])

    run_one(conn, dsn, work)
    length = len(json.dumps(messages))
    stored = value(conn, "SELECT sum(length(content)) FROM outbox.blob_parts")
    inline = value(conn, "SELECT coalesce(sum(length(result::text)), 0) FROM outbox.checkpoints")
    named = value(conn, "SELECT sum(32 * cardinality(parts)) FROM outbox.blobs")
    assert inline < 20 * checkpoint.MAX_INLINE
    assert stored < 5 * length
    assert named < length


# run.store


def as_pieces(content: bytes) -> Iterator[bytes]:
    yield from (content[at : at + 100_000] for at in range(0, len(content), 100_000))


async def as_async_pieces(content: bytes) -> AsyncIterator[bytes]:
    for piece in as_pieces(content):
        yield piece


def every_other(content: bytes) -> memoryview:
    return memoryview(b"".join(bytes([each, 0]) for each in content))[::2]


class AsyncFile:
    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    async def read(self, size: int) -> bytes:
        return self._file.read(size)


@pytest.mark.parametrize(
    "come_as", [bytes, bytearray, memoryview, every_other, io.BytesIO, as_pieces, as_async_pieces, AsyncFile]
)
@pytest.mark.parametrize("size", [0, 1, 3 * MB + 5])
def test_what_is_stored_comes_back(conn: Conn, dsn: str, come_as: Any, size: int) -> None:
    content = incompressible(size)
    seen: list[bytes] = []

    async def work(run: Run[Case]) -> Case:
        blob = await run.store(come_as(content))
        assert blob == Blob(sha256=sha256(content).hexdigest(), size=size)
        seen.append(await run.load(blob))
        seen.append(b"".join([part async for part in run.stream(blob)]))
        return Go("DONE", Case(history=blob))

    pipeline = deployed(conn, cases(work))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert seen == [content, content]
    assert status_of(conn, "a") == "DONE"
    assert value(conn, "SELECT outbox.blob(metadata -> 'history' ->> 'sha256') FROM outbox.workflow_states") == content


def test_a_plain_handler_stores_and_reads_without_await(conn: Conn, dsn: str) -> None:
    content = incompressible(MB)
    seen: list[bytes] = []

    def work(run: SyncRun[Case]) -> Go[Case]:
        blob = run.store(as_pieces(content))
        seen.append(run.load(blob))
        seen.append(b"".join(run.stream(blob)))
        return Go("DONE", Case(history=blob))

    pipeline = deployed(conn, cases(work))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert seen == [content, content]
    assert status_of(conn, "a") == "DONE"


@pytest.mark.parametrize("content", [None, 7, "text", ["text"], {"a": 1}])
def test_what_is_no_content_is_refused(conn: Conn, dsn: str, content: Any) -> None:
    async def work(run: Run[Case]) -> None:
        await run.store(content)

    pipeline = deployed(conn, cases(work, retry=ONCE))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert value(conn, "SELECT error FROM outbox.dead_jobs").startswith("InvalidInput: content: ")


def test_a_content_that_is_too_large_is_refused(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "MAX_SIZE", 3 * MB)

    async def work(run: Run[Case]) -> None:
        await run.store(incompressible(3 * MB + 1))

    pipeline = deployed(conn, cases(work, retry=ONCE))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert "InvalidInput: content: has more than 3,145,728 bytes" in value(conn, "SELECT error FROM outbox.dead_jobs")
    assert counts(conn)[:2] == (0, 0)


def test_who_has_lost_the_job_stores_nothing(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Case]) -> None:
        await asyncio.to_thread(conn.execute, "UPDATE outbox.workflow_states SET current_status = 'DONE'")
        with pytest.raises(LeaseLost):
            await run.store(b"too late" * 100_000)
        seen.append(counts(conn)[:2])

    seen: list[Any] = []
    pipeline = deployed(conn, cases(work))
    pipeline.allow("NEW", to="DONE")
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert seen == [(0, 0)]


def test_parts_that_were_swept_away_meanwhile_are_written_again(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may freeze for more than a day between the parts and what refers to them."""
    refer = blobs._refer
    frozen = [True]

    def late(*given: Any) -> Any:
        if frozen:
            frozen.pop()
            conn.execute("DELETE FROM outbox.blob_parts")
        return refer(*given)

    monkeypatch.setattr(blobs, "_refer", late)

    async def work(run: Run[Case]) -> Go[Case]:
        assert await run.once("key", large, "ab") == {"text": "ab" * 300_000}
        frozen.append(True)
        stored = await run.store(incompressible(MB))
        assert await run.load(stored) == incompressible(MB)
        frozen.append(True)
        with pytest.raises(HandlerError, match="more than a day"):
            await run.store(as_pieces(incompressible(MB)))
        return Go("DONE")

    pipeline = deployed(conn, cases(work, retry=ONCE))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert value(conn, "SELECT error FROM outbox.dead_jobs") is None
    assert status_of(conn, "a") == "DONE"


@pytest.mark.parametrize("as_it_comes", [bytes, iter])
def test_a_content_that_is_stored_while_another_workflow_that_has_it_is_erased(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch, as_it_comes: Any
) -> None:
    """Erasing deletes at once, also parts that have just been found to be there. What is in memory is stored again."""
    content = incompressible(MB)
    pipeline = turns(conn, dsn, content)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'DONE'")
    refer = blobs._refer

    def late(*given: Any) -> Any:
        if value(conn, "SELECT count(*) FROM outbox.blob_uses"):
            pipeline.erase(conn, "a")
        return refer(*given)

    monkeypatch.setattr(blobs, "_refer", late)

    async def work(run: Run[Case]) -> Go[Case]:
        return Go("DONE", Case(history=await run.store(as_it_comes([content]) if as_it_comes is iter else content)))

    other = Pipeline("others", data=Case, initial="NEW", final={"DONE"})
    other.stage("work", on="NEW", to="DONE", retry=ONCE)(work)
    deployed(conn, other).submit(conn, "b", Case())
    drain(other, dsn)
    if as_it_comes is bytes:
        assert status_of(conn, "b") == "DONE"
        assert value(conn, "SELECT outbox.blob(%s)", sha256(content).hexdigest()) == content
    else:
        assert "a workflow that had them was erased" in value(conn, "SELECT error FROM outbox.dead_jobs")


# How long it is there


def turns(conn: Conn, dsn: str, *contents: bytes, **options: Any) -> Pipeline[Case]:
    """Runs a case through so many turns, each of which stores a content and names it alone."""
    left = list(contents)

    async def work(run: Run[Case]) -> Go[Case]:
        return Go("ASKED", Case(history=await run.store(left.pop(0))))

    pipeline = cases(work)
    for name, function in options.items():
        pipeline.on_change("ASKED", name=name)(function)
    deployed(conn, pipeline).submit(conn, "a", Case())
    for n in range(len(contents)):
        if n:
            conn.execute("UPDATE outbox.workflow_states SET current_status = 'NEW' WHERE entity_id = 'a'")
        drain(pipeline, dsn)
    return pipeline


def test_a_blob_goes_when_no_data_names_it_any_more(conn: Conn, dsn: str) -> None:
    old, new = conversation(100), conversation(120)
    turns(conn, dsn, json.dumps(old).encode(), json.dumps(new).encode())
    both = counts(conn)
    assert both[:2] == (2, 2)
    sweep(conn, hours=1)
    assert counts(conn) == both, "not before an hour"
    sweep(conn)
    assert counts(conn)[:2] == (1, 1)
    assert counts(conn)[2] < both[2], "the last part of the old one"
    content = value(conn, "SELECT outbox.blob(metadata -> 'history' ->> 'sha256') FROM outbox.workflow_states")
    assert json.loads(content) == new
    conn.execute("DELETE FROM outbox.workflow_states")
    sweep(conn)
    assert counts(conn) == (0, 0, 0)


def test_a_conversation_costs_storage_linear_in_its_length_at_every_turn(conn: Conn, dsn: str) -> None:
    """All 40 versions are there until the sweep."""
    messages = conversation(200)
    versions = [json.dumps(messages[: turn * 5]).encode() for turn in range(1, 41)]
    left = list(versions)
    pipeline: Pipeline[Case] = Pipeline("cases", data=Case, initial="PING", final={"DONE"})

    @pipeline.stage("turn", on={"PING", "PONG"}, to={"PING", "PONG", "DONE"}, retry=QUICK)
    async def turn(run: Run[Case]) -> Go[Case]:
        said = Case(history=await run.store(left.pop(0)))
        return Go(("PONG" if run.status == "PING" else "PING") if left else "DONE", said)

    deployed(conn, pipeline).submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "DONE"
    assert counts(conn)[:2] == (40, 40)
    assert value(conn, "SELECT sum(length(content)) FROM outbox.blob_parts") < 2 * len(versions[-1])
    assert len(versions[-1]) * 15 < sum(map(len, versions))


def test_what_a_failed_attempt_has_stored_stays_for_the_next_one_and_goes_with_the_job(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Case]) -> None:
        await run.store(incompressible(MB))
        raise ValueError("after")

    pipeline = deployed(conn, cases(work, retry=ONCE))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    sweep(conn)
    assert counts(conn)[:2] == (1, 1), "its dead job may be retried"
    conn.execute("DELETE FROM outbox.dead_jobs")
    sweep(conn)
    assert counts(conn) == (0, 0, 0)


def test_a_question_about_it_keeps_a_blob(conn: Conn, dsn: str) -> None:
    turns(conn, dsn, b"1" * MB, b"2" * MB)
    hash_ = sha256(b"1" * MB).hexdigest()
    conn.execute(
        "INSERT INTO outbox.approvals (workflow_id, pipeline, entity_id, status, version, question, shown, options, data) "
        "SELECT id, pipeline, entity_id, current_status, version, 'This?', '', '{}', %s FROM outbox.workflow_states",
        [json.dumps({"history": {"sha256": hash_, "size": MB}})],
    )
    sweep(conn)
    assert value(conn, "SELECT outbox.blob(%s)", hash_) == b"1" * MB
    conn.execute("UPDATE outbox.approvals SET ended = 'withdrawn', ended_at = now()")
    sweep(conn)
    assert value(conn, "SELECT outbox.blob(%s)", hash_) is None


def test_only_data_that_has_changed_is_read_for_blobs(conn: Conn, dsn: str) -> None:
    """Data may be long, and a workflow has many statuses. A use that is found is written."""
    turns(conn, dsn, b"1" * MB)
    noted = "SELECT count(*) FROM outbox.blob_uses WHERE kept_until > now() - interval '1 hour'"
    for change in ("current_status = 'NEW'", "metadata = metadata"):
        conn.execute("UPDATE outbox.blob_uses SET kept_until = now() - interval '2 hours'")
        conn.execute(f"UPDATE outbox.workflow_states SET {change}".encode())
        assert value(conn, noted) == 0
    conn.execute("UPDATE outbox.workflow_states SET metadata = metadata || '{\"b\": 1}'")
    assert value(conn, noted) == 1


@pytest.mark.parametrize("edited", [False, True])
def test_what_a_question_was_about_is_there_when_its_answer_is_read(conn: Conn, dsn: str, edited: bool) -> None:
    """It is another workflow's content at first, and that one goes."""
    contents = [incompressible(MB, 1), incompressible(MB, 2)]
    first, second = ({"of": {"sha256": sha256(each).hexdigest(), "size": MB}} for each in contents)
    turns(conn, dsn, *contents)
    seen: list[bytes] = []

    def work(run: SyncRun[Any]) -> Any:
        if run.status == "NEW":
            about = Question("This?", options={"yes": "ANSWERED"}, about=first)
            return WaitForApproval(questions=[about], status="WAITING")
        (answer,) = run.answers()
        assert answer.about is not None
        seen.append(run.load(Blob(**answer.about["of"])))
        return Go("DONE")

    pipeline: Pipeline[Any] = Pipeline("asking", initial="NEW", final={"DONE"})
    pipeline.stage("work", on={"NEW", "ANSWERED"}, to={"WAITING", "DONE"}, retry=ONCE)(work)
    pipeline.allow("WAITING", to="ANSWERED")
    deployed(conn, pipeline).submit(conn, "q", {})
    drain(pipeline, dsn)
    if edited:
        outbox.decide(conn, pipeline, "q", "yes", by="ann", about=second)
    conn.execute("DELETE FROM outbox.workflow_states WHERE pipeline = 'cases'")
    sweep(conn)
    if not edited:
        outbox.decide(conn, pipeline, "q", "yes", by="ann")
    sweep(conn)
    drain(pipeline, dsn)
    assert seen == [contents[edited]]
    sweep(conn)
    assert counts(conn) == (0, 0, 0)


def test_reactions_and_copies_by_sql_keep_a_blob_when_the_first_one_goes(conn: Conn, dsn: str) -> None:
    async def tell(run: Run[Change]) -> None:
        seen.append(await run.load(Blob(**run.data.data["history"])))

    seen: list[bytes] = []
    content = incompressible(MB)
    pipeline = turns(conn, dsn, content, tell=tell)
    conn.execute("DELETE FROM outbox.workflow_states WHERE pipeline = 'cases'")
    sweep(conn)
    drain(pipeline, dsn)
    assert seen == [content]
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata) "
        "SELECT 'cases', 'copy', 'ASKED', metadata -> 'data' FROM outbox.workflow_states"
    )
    conn.execute("SET outbox.retention = 'on'")
    conn.execute("DELETE FROM outbox.workflow_states WHERE pipeline <> 'cases'")
    sweep(conn)
    copied = "SELECT outbox.blob(metadata -> 'history' ->> 'sha256') = %s FROM outbox.workflow_states"
    assert value(conn, copied, content) is True


def test_a_handle_of_what_is_gone_is_told(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Case]) -> Go[Case]:
        with pytest.raises(NotFound, match="there is no blob 00"):
            await run.load(Blob(sha256="0" * 64, size=5))
        return Go("DONE")

    pipeline = deployed(conn, cases(work, retry=ONCE))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "DONE"


def test_a_handle_in_plain_json_is_read_and_what_is_none_is_refused(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Case]) -> Go[Case]:
        blob = await run.store(b"content")
        plain = json.loads(blob.model_dump_json())
        assert await run.load(plain) == b"".join([part async for part in run.stream(plain)]) == b"content"
        for wrong in (None, "content", {"sha256": "7", "size": 7}):
            with pytest.raises(InvalidInput, match="blob: is no handle"):
                await run.load(wrong)  # type: ignore[arg-type]
        return Go("DONE")

    pipeline = deployed(conn, cases(work, retry=ONCE))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "DONE"


@pytest.mark.parametrize("size", [0, MB - 1, MB + 1])
def test_a_handle_of_another_size_is_told_and_no_content_is_cut(conn: Conn, dsn: str, size: int) -> None:
    """Whoever writes data writes handles."""
    content = incompressible(MB)
    turns(conn, dsn, content)
    for hash_ in (sha256(content).hexdigest(), "0" * 64):
        blob = Blob(sha256=hash_, size=size)
        with pytest.raises(NotFound, match="there is no blob"):
            perform(blobs.load(blob), lambda step: conn.execute(*step).fetchall())
        with pytest.raises(NotFound, match="there is no blob"):
            list(blobs.stream(blob, lambda step: conn.execute(*step).fetchall()))


@pytest.mark.parametrize("content", [json.dumps([{"n": n} for n in range(400_000)]).encode(), incompressible(8 * MB)])
def test_a_content_is_read_a_few_megabytes_at_a_time(conn: Conn, dsn: str, content: bytes) -> None:
    """Its list of parts is read once: it is as long as the content is."""
    turns(conn, dsn, content)
    steps: list[bytes] = []
    read: list[int] = []

    def take(step: Any) -> Any:
        rows = conn.execute(*step).fetchall()
        steps.append(step[0])
        read.append(sum(len(row[0]) for row in rows if len(row) == 1))
        return rows

    assert b"".join(blobs.stream(Blob(sha256=sha256(content).hexdigest(), size=len(content)), take)) == content
    assert steps == [blobs.SQL["blob_parts"], *[blobs.SQL["blob_read"]] * (len(steps) - 1)]
    assert max(read) <= blobs.BATCH
    assert len(read) <= 2 + len(content) / MB


def test_maintenance_sweeps(conn: Conn, dsn: str) -> None:
    """With the plans and the rights of a worker."""
    turns(conn, dsn, b"1" * MB, b"2" * MB)
    conn.execute("UPDATE outbox.blob_uses SET kept_until = now() - interval '2 hours'")
    link = Link(dsn, "maintenance", settings=PLANNING)

    async def retain() -> None:
        for name, step in retention.steps(link, Apart(link), Retention(dead_jobs=None, inbox=None)):
            await step
            names.append(name)
        await link.close()

    names: list[str] = []
    asyncio.run(retain())
    assert "retention blobs" in names
    assert counts(conn)[:2] == (1, 1)
    assert value(conn, "SELECT count(*) FROM outbox.blob_parts WHERE loose_since IS NOT NULL") > 0


@pytest.mark.parametrize(("hours", "next_look"), [(3, 0), (72, 72), (10_000, 14 * 24)])
def test_the_longer_a_blob_has_been_used_the_later_it_is_looked_at_again(
    conn: Conn, dsn: str, hours: int, next_look: int
) -> None:
    turns(conn, dsn, b"1" * MB)
    conn.execute(
        "UPDATE outbox.blob_uses SET since = now() - make_interval(hours => %s), kept_until = now() - interval '2 hours'",
        [hours],
    )
    assert value(conn, "SELECT outbox.blob_uses_sweep(1, 10)") == 1
    later = "SELECT round(extract(epoch FROM kept_until - now()) / 3600)::integer FROM outbox.blob_uses"
    assert value(conn, later) == next_look
    assert value(conn, "SELECT outbox.blob_uses_sweep(1, 10)") == 0


def test_a_run_of_retention_looks_at_a_few_batches(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tick that it is a part of must not be late."""
    monkeypatch.setattr(retention, "BATCH", 1)
    monkeypatch.setattr(retention, "MOST_LOOKS", 2)
    turns(conn, dsn, b"1" * MB, b"2" * MB, b"3" * MB)
    conn.execute("UPDATE outbox.blob_uses SET kept_until = now() - interval '2 hours'")
    link = Link(dsn, "maintenance", settings=PLANNING)

    async def look() -> None:
        await retention._look(link, "retention_blob_uses", 1.0)
        await link.close()

    asyncio.run(look())
    assert value(conn, "SELECT count(*) FROM outbox.blob_uses WHERE kept_until < now() - interval '1 hour'") == 1


# Memory


STORES = """
import asyncio, resource, sys
from kit.pipelines import deployed, drain
import psycopg
from outbox import Blob, Go, Pipeline, Run
from pydantic import BaseModel

class Case(BaseModel):
    video: Blob | None = None

def pieces():
    for n in range(int(sys.argv[2])):
        yield n.to_bytes(4, "big") * 2**18

cases = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})

@cases.stage("work", on="NEW", to="DONE", timeout=600)
async def work(run: Run[Case]) -> Case:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    blob = await run.store(pieces())
    assert sum([len(part) async for part in run.stream(blob)]) == blob.size
    print(blob.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    return Case(video=blob)

with psycopg.connect(sys.argv[1], autocommit=True) as conn:
    deployed(conn, cases).submit(conn, "a", Case())
drain(cases, sys.argv[1])
"""


def test_a_content_takes_no_more_memory_than_a_few_of_its_parts(dsn: str) -> None:
    """128 MB here; a gigabyte takes as much."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", STORES, dsn, "128"], env=env, capture_output=True, text=True, check=True
    )
    size, grown = map(int, done.stdout.split())
    assert size == 128 * MB
    assert grown < 100
