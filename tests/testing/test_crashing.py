"""A crash at each step of a drain: what was promised holds after each of them, and what wasn't shows."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, status_of, value
from outbox import Backoff, InvalidInput, OutboxError, Pipeline, Run
from outbox.testing import crash_everywhere

Conn = psycopg.Connection[Any]
QUICK = Backoff(first=0, max=0, attempts=5)


def shop(calls: list[str], *, once: bool = True) -> Pipeline[Post]:
    p = Pipeline("p", data=Post, initial="NEW", final={"DONE"})

    def charge(key: str) -> str:
        calls.append(key)
        return "paid"

    @p.stage("pay", on="NEW", to="PAID", retry=QUICK)
    async def pay(run: Run[Post]) -> Post:
        paid = await run.once("charge", charge, run.idempotency_key) if once else charge(run.idempotency_key)
        return Post(content=paid)

    @p.stage("book", on="PAID", to="BOOKED", transaction=True, retry=QUICK)
    def book(run: Run[Post]) -> None:
        run.connection.execute("INSERT INTO outbox.books VALUES (%s)", [run.entity_id])

    @p.stage("send", on="BOOKED", to="DONE", transaction=True, retry=QUICK)
    async def send(run: Run[Post]) -> None:
        run.publish("sent", {})

    return p


@pytest.fixture
def books(conn: Conn) -> Conn:
    conn.execute("CREATE TABLE outbox.books (entity_id text)")
    return conn


def test_what_commits_together_survives_a_crash_anywhere(books: Conn, dsn: str) -> None:
    calls: list[str] = []
    p = deployed(books, shop(calls))
    runs = 0

    def scenario(drain: Any) -> None:
        nonlocal runs
        runs += 1
        calls.clear()
        books.execute("DELETE FROM outbox.books")
        p.submit(books, "a", Post())
        drain()
        assert status_of(books, "a") == "DONE"
        assert value(books, "SELECT array_agg(entity_id) FROM outbox.books") == ["a"]
        assert value(books, "SELECT count(*) FROM outbox.messages") == 1
        assert len(set(calls)) == 1, "the same key in every attempt"
        assert len(calls) <= 2, "a second call only if the first was not kept"

    places = crash_everywhere(scenario, p, dsn)
    assert runs == len(places) + 1
    for place in (
        "jobs_claim", "a call of run.once or run.effect", "a result of run.once was kept", "the handler of p.pay",
        "jobs_finish_if_held", "the BEGIN of stage p.book", "the function of stage p.book", "the COMMIT of stage p.book",
        "the COMMIT of stage p.send",
    ):  # fmt: skip
        assert place in places


def test_an_effect_outside_that_is_not_kept_shows(books: Conn, dsn: str) -> None:
    calls: list[str] = []
    p = deployed(books, shop(calls, once=False))

    def scenario(drain: Any) -> None:
        calls.clear()
        p.submit(books, "a", Post())
        drain()
        assert len(calls) == 1

    with pytest.raises(AssertionError) as failed:
        crash_everywhere(scenario, p, dsn)
    assert failed.value.__notes__[0].startswith("with a crash at step 2 of ")
    assert failed.value.__notes__[0].endswith("after the handler of p.pay")


def test_a_scenario_may_drain_several_times_and_ticks_crash_too(conn: Conn, dsn: str) -> None:
    p: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})
    p.stage("work", on="NEW", to="ASKED", retry=QUICK)(lambda run: None)
    p.stage("end", on="YES", to="DONE", retry=QUICK)(lambda run: None)
    p.allow("ASKED", to="YES")
    p.every("0 3 * * *", name="nightly")(lambda tick: p.submit(tick.connection, "a", {}))
    deployed(conn, p)

    def scenario(drain: Any) -> None:
        conn.execute("UPDATE outbox.schedules SET next_at = now() - interval '1 minute'")
        drain()
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'YES'")
        drain()
        assert status_of(conn, "a") == "DONE"

    places = crash_everywhere(scenario, p, dsn)
    assert "the COMMIT of schedule p.nightly" in places
    assert places.count("jobs_claim") == 2


def test_errors_of_handlers_are_raised_and_the_database_must_be_a_test_s(conn: Conn, dsn: str) -> None:
    p: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})
    p.stage("work", on="NEW", to="DONE")(lambda run: 1 / 0)
    deployed(conn, p)

    def scenario(drain: Any) -> None:
        p.submit(conn, "a", {})
        drain()

    with pytest.raises(ZeroDivisionError):
        crash_everywhere(scenario, p, dsn)
    with pytest.raises(InvalidInput, match="must be a DSN"):
        crash_everywhere(scenario, p, conn)  # type: ignore[arg-type]
    conn.execute("INSERT INTO outbox.workers (name, stages, lease) VALUES ('host:1', '{}', '30 s')")
    with pytest.raises(OutboxError, match="host:1"):
        crash_everywhere(scenario, p, dsn)
