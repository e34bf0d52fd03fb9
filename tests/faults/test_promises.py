"""What a COMMIT has promised survives the primary: also where it only found that all was there already.

The standby is away. A first call has taken effect on the primary alone: its COMMIT waited, and somebody cancelled it. The
same call comes again, and its COMMIT must wait, too: its answer would be a promise that only this server can keep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from kit.databases import OWNER, make_database
from kit.pipelines import Post, drain, value
from kit.replication import Pair, waiting
from kit.servers import DEADLINE, wait_for
from outbox import Inbox, Pipeline, Run, WaitForApproval, approve, pause, resume, retry, retry_all, signal
from outbox.client.submit import submit_text
from outbox.database import migrations
from outbox.definition import deploy
from outbox.messages import handoff
from outbox.messages.target import Outgoing
from outbox.operations import change

Conn = psycopg.Connection[Any]
Act = Callable[[Conn], Any]

MESSAGE = "01980000-0000-7000-8000-000000000001"

posts: Pipeline[Post] = Pipeline("posts", data=Post, initial="NEW", final={"DONE", "REJECTED"})


@posts.stage("ask", on="NEW", to="ASKED")
async def ask(run: Run[Post]) -> Any:
    return WaitForApproval("Is it fine?", options={"approve": "DONE", "reject": "REJECTED"})


posts.allow("ASKED", to={"DONE", "REJECTED", "NEW"})


def later(pipeline: str = "later") -> Pipeline[Post]:
    made: Pipeline[Post] = Pipeline(pipeline, data=Post, initial="NEW", final={"DONE"})
    made.allow("NEW", to="DONE")
    return made


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A pair whose standby is away, and whose database has what the cases need."""
    with Pair(settings={"wal_level": "logical"}) as pair:
        dsn = make_database(pair.primary, "promises")
        migrations.apply(dsn)
        with psycopg.connect(dsn, autocommit=True) as conn:
            deploy.deploy(conn, posts)
            posts.submit_many(
                conn, [(entity, Post()) for entity in ("asked", "asked too", "moved", "told", "told too")]
            )
            drain(posts, dsn)
            conn.execute(
                "INSERT INTO outbox.parked_deliveries (consumer, queue, body, headers, reason, digest) "
                "SELECT 'shop', 'q', '', '{}', 'r', n::text::bytea FROM generate_series(1, 2) AS n"
            )
        with psycopg.connect(pair.primary.dsn("promises"), autocommit=True) as admin:
            migrations.make_roles(admin)
            admin.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        pair.detach()
        yield pair


@pytest.fixture
def dsn(pair: Pair) -> str:
    return pair.primary.dsn("promises", OWNER)


def let_go(pair: Pair, *calls: Future[Any]) -> None:
    """Cancels the waits for the standby until the calls have ended: what they wrote is there, on this server alone."""

    def over() -> bool:
        with pair.primary.admin() as admin:
            for pid in waiting(pair.primary):
                admin.execute("SELECT pg_cancel_backend(%s)", [pid])
        return all(call.done() for call in calls)

    wait_for(over, what="the calls end")


def call(dsn: str, act: Act, autocommit: bool = False) -> Any:
    with psycopg.connect(dsn, autocommit=autocommit) as conn:
        return act(conn)


def waits(pair: Pair, pool: ThreadPoolExecutor, act: Act, dsn: str, autocommit: bool = False) -> bool:
    """Returns whether a call waits for the standby before it answers."""
    calling = pool.submit(call, dsn, act, autocommit)
    wait_for(lambda: calling.done() or waiting(pair.primary), what="the answer comes, or waits")
    answered = calling.done()
    let_go(pair, calling)
    calling.result()
    return not answered


def inserted(statement: str) -> Act:
    return lambda conn: conn.execute(statement).fetchall()


def hand_over(dsn: str, number: int, target: handoff.Handoff | None = None) -> None:
    """Hands a message over to the pipeline, as the relay's target does."""
    message = Outgoing(number, f"{MESSAGE[:-2]}{number}", "t", f"handed {number}", "{}", None, datetime.now(UTC))
    to = target or handoff.Handoff(dsn, "posts")
    to.lease.confirm(float("inf"))

    async def deliver() -> None:
        assert await to.deliver([message], set()) == {}
        await to.close()

    asyncio.run(deliver())


def paused(conn: Conn) -> Any:
    return pause(conn, "posts.ask", by="me")


PLAIN_SUBMIT = (
    "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('posts', 'plain', '{}') "
    "ON CONFLICT (pipeline, entity_id) DO NOTHING RETURNING id"
)
PLAIN_INBOX = (
    f"INSERT INTO outbox.inbox (consumer, message_id) VALUES ('plain', '{MESSAGE}') ON CONFLICT DO NOTHING RETURNING 1"
)
PLAIN_SIGNAL = "INSERT INTO outbox.signals (pipeline, entity_id, name, signal_id) VALUES ('posts', 'told', 'paid', 'p1') RETURNING id"
CALLS: dict[str, Act] = {
    "submit": lambda conn: posts.submit(conn, "submitted", Post()),
    "submit_many": lambda conn: posts.submit_many(conn, [("many", Post()), ("more", Post())]),
    "outbox submit": lambda conn: submit_text("posts", conn, [("text", "{}")]),
    "INSERT INTO workflow_states": inserted(PLAIN_SUBMIT),
    "inbox": lambda conn: Inbox("shop").accept(conn, MESSAGE),
    "INSERT INTO inbox": inserted(PLAIN_INBOX),
    "handoff": lambda conn: hand_over(conn.info.dsn, 11),
    "signal": lambda conn: signal(conn, posts, "told too", "paid", id="p2"),
    "INSERT INTO signals": inserted(PLAIN_SIGNAL),
    "approve": lambda conn: approve(conn, posts, "asked", by="me"),
    "decide": inserted("SELECT outbox.decide('posts', 'asked too', 'reject', 'me')"),
    "set_status": lambda conn: posts.move(conn, "moved", "DONE", by="me"),
    "pause": paused,
    "resume": lambda conn: resume(conn, "posts.ask", by="me"),
    "retry": lambda conn: retry(conn, posts, "told"),
    "retry --all": lambda conn: retry_all(conn),
    "parked --retry, all": lambda conn: change.retry_parked(conn, consumer="shop"),
    "parked --retry": lambda conn: change.retry_parked(conn, consumer="shop", ids=[1]),
    "deploy": lambda conn: deploy.deploy(conn, later()),
    "SELECT commit_waits": inserted("SELECT outbox.commit_waits()"),
    "migrate": lambda conn: migrations.apply(conn),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_waits_for_the_standby_as_the_first_one_did(pair: Pair, dsn: str, name: str) -> None:
    with ThreadPoolExecutor() as pool:
        first = pool.submit(call, dsn, CALLS[name])
        let_go(pair, first)
        first.result()
        assert waits(pair, pool, CALLS[name], dsn, autocommit=False)
        assert waits(pair, pool, CALLS[name], dsn, autocommit=True)


@pytest.mark.parametrize(
    ("role", "name"),
    [("submitter", "INSERT INTO workflow_states"), ("consumer", "INSERT INTO inbox"), ("operator", "pause")],
)
def test_it_takes_no_right_of_its_own(pair: Pair, role: str, name: str) -> None:
    def act(conn: Conn) -> Any:
        conn.execute(f"SET ROLE outbox_{role}".encode())
        return CALLS[name](conn)

    with ThreadPoolExecutor() as pool:
        for _ in range(2):
            assert waits(pair, pool, act, pair.primary.dsn("promises"))


def test_logical_decoding_sees_it_only_where_it_asks_for_messages(pair: Pair, dsn: str) -> None:
    act = CALLS["submit"]
    with ThreadPoolExecutor() as pool, psycopg.connect(pair.primary.dsn("promises"), autocommit=True) as admin:
        waits(pair, pool, act, dsn)
        admin.execute("SELECT pg_create_logical_replication_slot('watched', 'pgoutput', true)")
        assert waits(pair, pool, act, dsn)

        def seen(*options: str) -> list[bytes]:
            given = ["proto_version", "1", "publication_names", "everything", *options]
            peek = "SELECT data FROM pg_logical_slot_peek_binary_changes('watched', NULL, NULL, VARIADIC %s)"
            return [row[0] for row in admin.execute(peek, [given])]

        assert seen() == []
        assert [data for data in seen("messages", "true") if b"outbox.unchanged" in data] != []


def test_a_handoff_that_is_not_answered_cancels_no_commit_and_leaves_one_session(
    pair: Pair, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff, "ANSWER_WITHIN", 0.4)
    monkeypatch.setattr(handoff, "_LOCKS_WITHIN", 0.2)
    target = handoff.Handoff(dsn, "posts")
    tries: list[str | None] = []
    monkeypatch.setattr(target.trouble, "set", tries.append)
    with ThreadPoolExecutor() as pool:
        handing = pool.submit(hand_over, dsn, 12, target)
        wait_for(lambda: len(tries) > 2, what="it has tried again")
        assert tries[0] == "the database to hand on to: it does not answer"
        assert not handing.done()
        assert len(waiting(pair.primary)) == 1, "the COMMIT of the first try, and nothing else, waits for the standby"
        with psycopg.connect(dsn) as conn:
            there = "SELECT count(*) FROM outbox.workflow_states WHERE entity_id = 'handed 12'"
            assert value(conn, there) == 0, "it is not there before the standby has it"
        monkeypatch.undo()
        let_go(pair, handing)
        handing.result(DEADLINE)
