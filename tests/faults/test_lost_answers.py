"""F22: the connection is cut after a statement arrived and before its answer. Unknown is not failed: one job, one effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kit.pipelines import Post, deployed, drain, make_posts, one_stage, status_of, value
from kit.proxy import LossyProxy
from outbox import Run
from outbox.engine import sharing, transaction

Conn = psycopg.Connection[Any]
Cut = Callable[..., str]


@pytest.fixture
def proxies() -> Iterator[list[LossyProxy]]:
    made: list[LossyProxy] = []
    yield made
    for proxy in made:
        proxy.close()
        assert proxy.lost == 1, "the test has lost its answer"


@pytest.fixture
def cut(dsn: str, proxies: list[LossyProxy]) -> Cut:
    """Return a DSN by which the answer to the first statement with a marker in it is lost."""

    def cut(marker: bytes, *, prepared: bool) -> str:
        proxies.append(LossyProxy(int(conninfo_to_dict(dsn)["port"] or 0), marker, prepared=prepared))
        return make_conninfo(dsn, port=proxies[-1].port)

    return cut


def test_a_batch_whose_commit_was_not_answered_is_done_once(conn: Conn, dsn: str, cut: Cut) -> None:
    posts = deployed(conn, make_posts())
    posts.submit_many(conn, [(f"e{n}", Post()) for n in range(20)])
    worker = drain(posts, cut(b"published AS", prepared=True), listen_dsn=dsn)
    assert (worker.counts.done, worker.counts.lost, worker.counts.retried) == (60, 0, 0)
    assert value(conn, "SELECT count(*) FROM outbox.state_changes") == 80
    assert value(conn, "SELECT max(attempt) FROM outbox.state_changes") == 1
    assert value(conn, "SELECT count(*) FROM outbox.messages") == 20


@pytest.mark.parametrize("share", [None, 5])
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_handlers_own_commit_that_was_not_answered_is_done_once(
    conn: Conn, dsn: str, cut: Cut, colour: str, share: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "FIRST", 5)
    monkeypatch.setattr(transaction, "LONGEST", 60.0)
    conn.execute("CREATE TABLE outbox.ledger (entity text)")
    insert = "INSERT INTO outbox.ledger VALUES (%s)"

    async def act(run: Run[Any]) -> None:
        await run.connection.execute(insert, (run.entity_id,))

    def act_in_a_thread(run: Run[Any]) -> None:
        run.connection.execute(insert, (run.entity_id,))

    handler = act if colour == "async" else act_in_a_thread
    pipeline = deployed(conn, one_stage(handler, transaction=True, share=share))
    names = ["a", "b", "c"] if share else ["a"]
    pipeline.submit_many(conn, ((name, Post()) for name in names))
    worker = drain(pipeline, cut(b"COMMIT", prepared=False), listen_dsn=dsn)
    assert (worker.counts.done, worker.counts.lost, worker.counts.retried) == (len(names), 0, 0)
    assert {status_of(conn, name) for name in names} == {"DONE"}
    assert conn.execute("SELECT entity, count(*) FROM outbox.ledger GROUP BY 1 ORDER BY 1").fetchall() == [
        (name, 1) for name in names
    ]
    assert value(conn, "SELECT max(attempt) FROM outbox.state_changes") == 1


def test_jobs_whose_claim_was_not_answered_are_given_back_and_run(conn: Conn, dsn: str, cut: Cut) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))
    pipeline.submit_many(conn, [(f"e{n}", Post()) for n in range(20)])
    worker = drain(pipeline, cut(b"picked AS", prepared=True), listen_dsn=dsn)
    assert worker.counts.done == 20
    assert value(conn, "SELECT max(attempt) FROM outbox.state_changes") == 1, "no attempt is burnt"


@pytest.mark.parametrize("transaction", [False, True])
@pytest.mark.parametrize("marker", [b"INSERT INTO outbox.effects", b"UPDATE outbox.effects"])
def test_an_effect_whose_intention_or_result_was_not_answered_happens_once(
    conn: Conn, dsn: str, cut: Cut, marker: bytes, transaction: bool
) -> None:
    calls: list[str] = []

    async def charge(*, idempotency_key: str) -> str:
        calls.append(idempotency_key)
        return "paid"

    async def work(run: Run[Any]) -> None:
        assert await run.effect("charge", charge) == "paid"

    pipeline = deployed(conn, one_stage(work, transaction=transaction))
    pipeline.submit(conn, "a", Post())
    worker = drain(pipeline, cut(marker, prepared=False), listen_dsn=dsn)
    assert (worker.counts.done, worker.counts.retried, len(calls)) == (1, 0, 1)
    assert value(conn, "SELECT state FROM outbox.effects WHERE calls = 1") == "done"


def test_a_question_about_an_effect_that_was_not_answered_is_asked_once(conn: Conn, dsn: str, cut: Cut) -> None:
    async def charge() -> None:
        raise TimeoutError

    async def work(run: Run[Any]) -> None:
        await run.effect("charge", charge)

    pipeline = deployed(conn, one_stage(work))
    pipeline.submit(conn, "a", Post())
    worker = drain(pipeline, cut(b"outbox.effects_ask", prepared=False), listen_dsn=dsn)
    assert (worker.counts.lost, worker.counts.retried) == (0, 0)
    assert value(conn, "SELECT count(*) FROM outbox.approvals WHERE ended IS NULL") == 1
    assert value(conn, "SELECT due IS NULL AND owner IS NULL FROM outbox.jobs")
