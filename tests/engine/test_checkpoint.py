"""Checkpoints inside a stage: an expensive call is made once, whatever becomes of the attempt; and how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

import outbox
from kit.commands import Outbox
from kit.pipelines import Post, deployed, drain, drain_all, one_stage, run_one, status_of, value
from kit.servers import DEADLINE, Process, wait_for
from kit.waits import HOUR, put_off
from outbox import Answer, Backoff, Go, Pipeline, Question, Run, SyncRun, WaitForApproval
from outbox.definition import deploy
from outbox.engine.apart import ALL
from outbox.engine.retention import SQL

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
ONCE = Backoff(attempts=1)


class Draft(BaseModel):
    text: str


calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


async def call_llm(prompt: str, *, words: int) -> Draft:
    calls.append(prompt)
    return Draft(text=f"{words} words on {prompt}")


def count(number: int) -> dict[str, int]:
    calls.append(number)
    return {"number": number}


def untyped(number: Any) -> Any:
    calls.append(number)
    return [number, None, "ä"]


@pytest.mark.parametrize("transaction", [False, True])
def test_a_call_is_made_once_over_all_attempts(conn: Conn, dsn: str, transaction: bool) -> None:
    seen: list[Any] = []

    async def work(run: Run[Post]) -> None:
        draft = await run.once("draft", call_llm, "cats", words=3)
        seen.append((draft, await run.once("count", count, 7), await run.once("untyped", untyped, 1)))
        if run.attempt < 3:
            raise ValueError("after the calls")

    run_one(conn, dsn, work, transaction=transaction)
    assert seen == [(Draft(text="3 words on cats"), {"number": 7}, [1, None, "ä"])] * 3
    assert calls == ["cats", 7, 1]
    kept = conn.execute("SELECT key, attempt, result FROM outbox.checkpoints ORDER BY key").fetchall()
    assert kept[1] == ("draft", 1, {"text": "3 words on cats"})


def test_the_first_attempt_gets_a_result_as_later_ones_do(conn: Conn, dsn: str) -> None:
    seen: list[str] = []

    def made() -> Any:
        return {"b": 1, "aa": 1e22, "a": -0.0}

    async def work(run: Run[Post]) -> None:
        seen.append(f"{await run.once('made', made)} {await run.effect('made', made)}")
        if run.attempt == 1:
            raise ValueError("after the calls")

    run_one(conn, dsn, work)
    assert seen[0] == seen[1]


def test_plain_handlers_have_it_without_await(conn: Conn, dsn: str) -> None:
    def work(run: Run[Post]) -> None:
        assert run.once("count", count, run.attempt) == {"number": 1}
        if run.attempt == 1:
            raise ValueError("after the call")

    run_one(conn, dsn, work)
    assert (calls, status_of(conn, "a")) == ([1], "DONE")


def test_a_call_that_fails_is_made_again(conn: Conn, dsn: str) -> None:
    def fail_first() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("rate limited")
        return 5

    async def work(run: Run[Post]) -> None:
        assert await run.once("n", fail_first) == 5

    run_one(conn, dsn, work)
    assert len(calls) == 2


def test_a_dead_job_that_is_retried_is_the_same_work(conn: Conn, dsn: str) -> None:
    tries: list[int] = []

    async def work(run: Run[Post]) -> None:
        await run.once("count", count, 1)
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("dead")

    pipeline = deployed(conn, one_stage(work, retry=ONCE))
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    Outbox(dsn)("retry", "a")
    drain(pipeline, dsn)
    assert (calls, status_of(conn, "a")) == ([1], "DONE")


def test_a_key_is_one_functions(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await run.once("key", count, 1)
        await run.once("key", untyped, 1)

    run_one(conn, dsn, work, retry=ONCE)
    assert "give another function another key" in value(conn, "SELECT error FROM outbox.dead_jobs")


@pytest.mark.parametrize("result", [object(), "x" * 2**26, float("nan"), "a\0b"])
def test_a_result_that_can_not_be_kept_is_told(conn: Conn, dsn: str, result: Any) -> None:
    async def work(run: Run[Post]) -> None:
        await run.once("key", lambda: result)

    run_one(conn, dsn, work, retry=ONCE)
    assert value(conn, "SELECT error FROM outbox.dead_jobs").startswith("InvalidInput: once('key')")


def test_who_has_lost_the_job_keeps_nothing(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await asyncio.to_thread(conn.execute, "UPDATE outbox.workflow_states SET current_status = 'MOVED'")
        await run.once("key", count, 1)

    run_one(conn, dsn, work)
    assert value(conn, "SELECT count(*) FROM outbox.checkpoints") == 0
    assert status_of(conn, "a") == "MOVED"


def test_what_is_no_longer_asked_for_goes(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await run.once("key", count, 1)
        if run.entity_id == "stays":
            raise ValueError("dead")

    pipeline = deployed(conn, one_stage(work, retry=ONCE))
    pipeline.submit_many(conn, [("goes", Post()), ("stays", Post())])
    drain_all(conn, dsn, pipeline)
    conn.execute("UPDATE outbox.checkpoints SET made_at = made_at - interval '2 hours'")
    assert conn.execute(SQL["retention_checkpoints"], {"days": 0.0, "limit": 10, **ALL}).fetchone() == (1,)
    left = "SELECT entity_id FROM outbox.checkpoints AS c JOIN outbox.workflow_states AS w ON w.id = c.workflow_id"
    assert value(conn, left) == "stays"


def test_progress_is_shown_while_it_is_made(conn: Conn, dsn: str) -> None:
    shown: list[Any] = []
    outbox = Outbox(dsn)

    async def work(run: Run[Post]) -> None:
        run.progress("3 of 10")
        while not shown:
            await asyncio.sleep(0.05)
            rows = conn.execute("SELECT progress FROM outbox.jobs WHERE progress IS NOT NULL").fetchall()
            if rows:
                shown.append(outbox("status", "--json").json["progress"][0]["progress"])
                shown.append(outbox("show", "a", "--json").json["job"]["progress"])
                assert "3 of 10" in outbox("status").out

    run_one(conn, dsn, work, timeout=DEADLINE)
    assert shown == ["3 of 10", "3 of 10"]


def test_calls_are_made_once_through_kills(conn: Conn, dsn: str, spawn: Spawn) -> None:
    """The world counts its calls; each worker is killed right after one was kept."""
    from apps.checkpoint import pipeline

    deploy.deploy(conn, pipeline)
    conn.execute("CREATE TABLE outbox.calls (key text)")
    pipeline.submit(conn, "a", {})
    for n in range(3):
        worker = spawn("worker", "--app", "apps.checkpoint:pipeline")
        wait_for(lambda n=n: value(conn, "SELECT count(*) FROM outbox.checkpoints") > n, what=f"call {n} was kept")  # type: ignore[misc]
        worker.kill9()
    conn.execute("CREATE TABLE outbox.gate ()")
    spawn("worker", "--app", "apps.checkpoint:pipeline")
    wait_for(lambda: status_of(conn, "a") == "DONE", what="it ends")
    assert value(conn, "SELECT count(*) = 5 AND count(DISTINCT key) = 5 FROM outbox.calls")
    assert value(conn, "SELECT metadata -> 'sum' FROM outbox.workflow_states") == 10


@pytest.mark.parametrize("is_async", [True, False])
def test_a_stage_reads_the_answers_to_the_questions_that_were_asked_last(conn: Conn, dsn: str, is_async: bool) -> None:
    seen: list[list[Answer]] = []

    def ask(found: list[Answer], status: str) -> Any:
        seen.append(sorted(found, key=lambda each: str(each.name)))
        if status == "ANSWERED" and len(seen) == 3:
            return Go("DONE")
        options = {"yes": "ANSWERED", "no": "ANSWERED"}
        first = Question("Pay?", name="pay", options=options, about={"cents": len(seen)})
        more = [Question("Ship?", name="ship", options=options)] if len(seen) == 1 else []
        return WaitForApproval(questions=[first, *more], status="WAITING", deadline=HOUR, on_deadline="ANSWERED")

    async def work(run: Run[Post]) -> Any:
        return ask(await run.answers(), run.status)

    def plain_work(run: SyncRun[Post]) -> Any:
        return ask(run.answers(), run.status)

    pipeline = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    pipeline.stage("work", on={"NEW", "ANSWERED"}, to={"WAITING", "DONE"})(work if is_async else plain_work)
    pipeline.allow("WAITING", to="ANSWERED")
    deployed(conn, pipeline).submit(conn, "a", Post())
    drain(pipeline, dsn)
    pay, ship = sorted(outbox.approvals(conn), key=lambda each: str(each.name))
    outbox.decide(conn, pipeline, "a", "yes", by="ann", about={"cents": 7}, question=pay.id)
    outbox.decide(conn, pipeline, "a", "no", by="ben", reason="late", question=ship.id)
    drain(pipeline, dsn)
    put_off(conn, 7200)
    drain_all(conn, dsn, pipeline)
    assert seen == [
        [],
        [
            Answer("pay", "Pay?", "decided", "yes", "ann", None, {"cents": 7}, True),
            Answer("ship", "Ship?", "decided", "no", "ben", "late", None, False),
        ],
        [Answer("pay", "Pay?", "deadline", None, "outbox", "deadline", {"cents": 2}, False)],
    ]
