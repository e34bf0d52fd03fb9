"""A drain by a worker, on a DSN."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, make_posts, one_stage, status_of, value
from outbox import Backoff, Go, HandlerError, InvalidInput, Pipeline, Reject, Retry, Run
from outbox.testing import drain, drain_async

Conn = psycopg.Connection[Any]
LATER = Backoff(first=3600, max=3600, attempts=3)


def submitted(conn: Conn, pipeline: Pipeline[Any], *entities: str) -> Pipeline[Any]:
    deployed(conn, pipeline)
    pipeline.submit_many(conn, [(entity, Post()) for entity in entities or ("a",)])
    return pipeline


def test_all_that_is_due_runs(conn: Conn, dsn: str) -> None:
    posts = submitted(conn, make_posts())
    assert drain(posts, dsn, concurrency=2).counts.done == 3
    assert status_of(conn, "a") == "COMPLETED"


@pytest.mark.parametrize("transaction", [False, True])
def test_the_handler_s_own_exception_is_raised_with_its_traceback(conn: Conn, dsn: str, transaction: bool) -> None:
    error = KeyError("x")

    def work(run: Run[Post]) -> None:
        raise error

    p = submitted(conn, one_stage(work, retry=LATER, transaction=transaction))
    with pytest.raises(KeyError) as raised:
        drain(p, dsn)
    assert raised.value is error
    assert raised.traceback[-1].name == "work"
    assert value(conn, "SELECT error LIKE 'KeyError%%' AND owner IS NULL FROM outbox.jobs")


def test_what_the_engine_refuses_is_raised(conn: Conn, dsn: str) -> None:
    p = submitted(conn, one_stage(lambda run: Go("NOWHERE"), retry=LATER))
    with pytest.raises(HandlerError, match="NOWHERE"):
        drain(p, dsn)


def test_several_errors_are_counted_in_a_note(conn: Conn, dsn: str) -> None:
    p = submitted(conn, one_stage(lambda run: 1 / 0, retry=LATER), "a", "b", "c")
    with pytest.raises(ZeroDivisionError):
        drain(p, dsn)
    assert drain(p, dsn, raise_errors=False).counts.retried <= 2


def test_retry_and_reject_are_no_errors(conn: Conn, dsn: str) -> None:
    def work(run: Run[Post]) -> None:
        raise Retry(after=3600) if run.entity_id == "later" else Reject("no")

    counts = drain(submitted(conn, one_stage(work), "later", "never"), dsn).counts
    assert (counts.retried, counts.dead) == (1, 1)


def test_with_retries_only_the_last_failure_is_raised(conn: Conn, dsn: str) -> None:
    def work(run: Run[Post]) -> None:
        if run.entity_id == "never" or run.attempt < 2:
            raise KeyError(run.attempt)

    p = submitted(conn, one_stage(work, retry=LATER), "second")
    counts = drain(p, dsn, retries=True).counts
    assert (counts.retried, counts.done) == (1, 1)
    p.submit(conn, "never", Post())
    with pytest.raises(KeyError, match="3"):
        drain(p, dsn, retries=True)
    assert value(conn, "SELECT attempts FROM outbox.dead_jobs") == 3


def test_until_leaves_workflows_in_a_status(conn: Conn, dsn: str) -> None:
    posts = submitted(conn, make_posts())
    with pytest.raises(InvalidInput, match="until: no pipeline has a status 'APROVED'"):
        drain(posts, dsn, until={"APROVED", "COMPLETED"})
    drain(posts, dsn, until="APPROVED")
    assert status_of(conn, "a") == "APPROVED"


def test_in_a_running_loop_drain_says_what_to_await(conn: Conn, dsn: str) -> None:
    posts = submitted(conn, make_posts())

    async def test() -> None:
        with pytest.raises(RuntimeError, match="drain_async"):
            drain(posts, dsn)
        assert (await drain_async(posts, dsn)).counts.done == 3

    asyncio.run(test())
    with pytest.raises(InvalidInput, match="pipelines"):
        drain("posts", dsn)  # type: ignore[arg-type]
