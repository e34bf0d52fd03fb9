"""What a step costs, counted: round trips, statements, rows written, index scans. A count, never a time.

A number that falls is a gain: write it down here. One that rises needs a reason.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from kit.pipelines import Post, deployed, drain, value
from outbox import Go, Pipeline, Run
from outbox.database.link import PLANNING
from outbox.definition import hooks
from outbox.definition.run import Message
from outbox.engine import claim, commit, sharing, transaction
from outbox.engine.job import Finished
from outbox.engine.lane import Lane

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]
BATCH = 200


def pipeline(**options: Any) -> Pipeline[Post]:
    posts: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"C"})

    @posts.stage("first", on="A", to="B", **options)
    async def first(run: Run[Post]) -> Post:
        run.publish("t", {"n": 1})
        return Post(content="new")

    @posts.stage("second", on="B", to="C", **options)
    async def second(run: Run[Post]) -> Go[Post]:
        run.publish("t", {"n": 2})
        return Go("C")

    return posts


# Rows and scans, of one statement in one transaction.

WRITTEN = "SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_xact_user_tables WHERE schemaname = 'outbox'"
SCANNED = "SELECT relname, seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE schemaname = 'outbox'"


def counted(conn: Conn, question: str) -> dict[str, tuple[int, ...]]:
    """Return what a fresh session has done so far."""
    return {name: numbers for name, *rest in conn.execute(question.encode()) if any(numbers := tuple(rest))}


@pytest.fixture
def claimed(conn: Conn) -> tuple[Pipeline[Post], Lane, bytes, dict[str, Any]]:
    posts = deployed(conn, pipeline())
    posts.submit_many(conn, ((f"e{n}", Post()) for n in range(BATCH)))
    conn.execute("INSERT INTO outbox.workers (id, name, stages, lease) VALUES (1, 'test', '{}', '1 hour')")
    lane = Lane(posts.stages["first"], BATCH)
    return posts, lane, *claim.request(1, [(lane, BATCH)], 1e9, careful=False)


def test_a_claim_writes_a_row_a_job(connect: Connect, claimed: Any) -> None:
    _, _, statement, params = claimed
    conn = connect(autocommit=False)
    assert len(conn.execute(statement, params).fetchall()) == BATCH
    assert counted(conn, WRITTEN) == {"jobs": (0, BATCH, 0)}


def test_a_commit_writes_six_rows_a_step_and_two_a_batch(conn: Conn, connect: Connect, claimed: Any) -> None:
    """Status, history, message, the counts of two statuses; the job that ends and the one that begins."""
    _, lane, statement, params = claimed
    claim.receive(1, {("p", "first"): lane}, conn.execute(statement, params).fetchall())
    batch = [(job, Finished("B", "{}", [Message("t", job.entity_id, "{}", None)])) for job in lane.waiting]
    measured = connect(autocommit=False)
    for name, setting in PLANNING.items():
        measured.execute("SELECT set_config(%s, %s, false)", (name, setting))
    assert len(measured.execute(*commit.finish(batch)).fetchall()) == BATCH
    assert counted(measured, WRITTEN) == {
        "workflow_states": (0, BATCH, 0),
        "jobs": (BATCH, 0, BATCH),
        "state_changes": (BATCH, 0, 0),
        "messages_0": (BATCH, 0, 0),
        "status_counts": (2, 0, 0),
    }
    scans = counted(measured, SCANNED)
    assert scans["workflow_states"] == (0, 2 * BATCH), "the fence finds it, then the update"
    assert scans["jobs"] == (0, 2 * BATCH + 1), "the fence finds it, then the trigger, which ends all in one scan"
    assert not {"state_changes", "messages_0", "status_counts"} & scans.keys(), "what is only appended is not read"


def logged(conn: Conn, admin_dsn: str, act: Callable[[], Any]) -> tuple[float, float]:
    """Run a transaction for a batch; return the WAL records and bytes of a step, without images of whole pages."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        where = admin.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        act()
        xid = value(conn, "SELECT pg_current_xact_id()::text")
        conn.commit()
        ((begin, end, first, last, programs),) = admin.execute(
            "SELECT l.first, l.last, current_setting('data_directory') || '/pg_wal/' || pg_walfile_name(l.first::pg_lsn),"
            " pg_walfile_name(l.last::pg_lsn), p.setting"
            " FROM (SELECT %s::text, pg_current_wal_flush_lsn()::text) AS l (first, last), pg_config() AS p"
            " WHERE p.name = 'BINDIR'",
            where,
        )
    command = [f"{programs}/pg_waldump", "--stats", f"--start={begin}", f"--end={end}", f"--xid={xid}", first, last]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    total = re.search(r"^Total +(\d+) +(\d+) ", told, re.MULTILINE)
    assert total is not None, told
    return int(total[1]) / BATCH, int(total[2]) / BATCH


def test_what_a_step_writes_to_the_log(conn: Conn, connect: Connect, admin_dsn: str, claimed: Any) -> None:
    """Records and bytes of WAL: what a disk, and each standby, must take."""
    _, lane, statement, params = claimed
    measured = connect(autocommit=False)
    rows: list[Any] = []
    claims = logged(measured, admin_dsn, lambda: rows.extend(measured.execute(statement, params).fetchall()))
    claim.receive(1, {("p", "first"): lane}, rows)
    batch = [(job, Finished("B", "{}", [Message("t", job.entity_id, "{}", None)])) for job in lane.waiting]
    for name, setting in PLANNING.items():
        measured.execute("SELECT set_config(%s, %s, false)", (name, setting))
    commits = logged(measured, admin_dsn, lambda: measured.execute(*commit.finish(batch)))
    assert claims[0] <= 5.1, "a lock, the row, and an entry in each of three indexes"
    assert claims[1] <= 435
    assert commits[0] <= 14.1
    assert commits[1] <= 1_250


def test_a_change_of_the_status_touches_no_index(connect: Connect, claimed: Any) -> None:
    """All rows of a page change in one batch, and each finds room there."""
    measured = connect(autocommit=False)
    measured.execute("UPDATE outbox.workflow_states SET current_status = 'B'")
    updates = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'workflow_states'"
    assert measured.execute(updates).fetchall() == [(BATCH, BATCH)]


def test_a_submit_writes_three_rows_a_workflow_and_one_a_batch(conn: Conn, connect: Connect) -> None:
    posts = deployed(conn, pipeline())
    measured = connect(autocommit=False)
    posts.submit_many(measured, ((f"e{n}", Post()) for n in range(BATCH)))
    assert counted(measured, WRITTEN) == {
        "workflow_states": (BATCH, 0, 0),
        "jobs": (BATCH, 0, 0),
        "state_changes": (BATCH, 0, 0),
        "status_counts": (1, 0, 0),
    }


# Round trips, of a whole worker, as a proxy sees them.


class Tap:
    """Forwards to a Postgres on loopback and counts what clients send: Query and Sync, each a round trip, by role."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.trips: Counter[str] = Counter()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._answers, args=(server, client), daemon=True).start()
                threading.Thread(target=self._questions, args=(client, server), daemon=True).start()

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError), client:
            while data := server.recv(65536):
                client.sendall(data)

    def _questions(self, client: socket.socket, server: socket.socket) -> None:
        pending, role = b"", ""
        with suppress(OSError), server:
            while data := client.recv(65536):
                server.sendall(data)
                pending += data
                while len(pending) > 5:
                    head = 0 if not role else 1  # the first message of a connection has no type
                    (size,) = struct.unpack_from("!i", pending, head)
                    if len(pending) < head + size:
                        break
                    message, pending = pending[: head + size], pending[head + size :]
                    if not role:
                        words = message[8:].split(b"\0")
                        role = (
                            words[words.index(b"application_name") + 1].decode()
                            if b"application_name" in words
                            else "?"
                        )
                    elif message[:1] in (b"Q", b"S"):
                        self.trips[role] += 1


@pytest.fixture
def tap(dsn: str) -> Iterator[Tap]:
    tap = Tap(psycopg.conninfo.conninfo_to_dict(dsn)["port"])  # type: ignore[arg-type]
    yield tap
    tap.close()


def trips(
    conn: Conn, dsn: str, tap: Tap, posts: Pipeline[Post], count: int, concurrency: int | None = None
) -> Counter[str]:
    """Run all workflows through both stages; return the round trips of each of the worker's connections."""
    deployed(conn, posts).submit_many(conn, ((f"e{n}", Post()) for n in range(count)))
    drain(posts, make_conninfo(dsn, port=tap.port, sslmode="disable", gssencmode="disable"), concurrency=concurrency)
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'C'") == count
    return tap.trips


def test_a_worker_asks_twice_a_batch(conn: Conn, dsn: str, tap: Tap) -> None:
    """Claim and commit, in batches of up to 200 as they come: a round trip for fifty steps or more."""
    steps = 2 * 2_000
    found = trips(conn, dsn, tap, pipeline(), steps // 2)
    assert found["outbox claim"] + found["outbox commit"] < steps / 50 + 20, found
    assert found["outbox handler"] == 0, "handlers have no connection unless they ask for one"


def test_what_runs_around_handlers_asks_nothing(conn: Conn, dsn: str, tap: Tap) -> None:
    posts = pipeline()
    posts.stages = {
        name: replace(stage, hooks=hooks.check("", lambda run: nullcontext(), nullcontext, print))
        for name, stage in posts.stages.items()
    }
    steps = 2 * 1_000
    found = trips(conn, dsn, tap, posts, steps // 2)
    assert found["outbox claim"] + found["outbox commit"] < steps / 50 + 20, found
    assert found["outbox handler"] == 0


def test_a_handlers_transaction_is_two_round_trips_beside_its_own(conn: Conn, dsn: str, tap: Tap) -> None:
    """BEGIN with the mark; status, all that follows from it, and COMMIT."""
    steps = 2 * 200
    found = trips(conn, dsn, tap, pipeline(transaction=True), steps // 2, concurrency=4)
    connecting = 8 * 12
    assert found["outbox handler"] <= steps * 2 + connecting, found


def test_a_batch_is_two_round_trips_however_many_are_in_it(conn: Conn, dsn: str, tap: Tap) -> None:
    posts: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"C"})

    @posts.stage("all", on="A", to="C", transaction=True, batch=100)
    async def work(runs: list[Run[Post]]) -> None:
        sizes.append(len(runs))

    sizes: list[int] = []
    found = trips(conn, dsn, tap, posts, 1_000, concurrency=1)
    assert found["outbox handler"] <= len(sizes) * 2 + 20, found
    assert len(sizes) < 30


def test_jobs_that_share_a_commit_take_two_round_trips_each_and_two_together(
    conn: Conn, dsn: str, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BEGIN with the mark, and COMMIT with all statuses; each further turn is opened while its handler begins."""
    monkeypatch.setattr(transaction, "LONGEST", 60.0)
    monkeypatch.setattr(sharing, "FIRST", 10)
    posts: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"C"})
    writing, silent = [], []

    @posts.stage("all", on="A", to="C", transaction=True, share=10)
    async def work(run: Run[Post]) -> None:
        if int(run.entity_id[1:]) % 2:
            writing.append(await run.connection.execute("SELECT 1"))
        else:
            silent.append(run.entity_id)

    found = trips(conn, dsn, tap, posts, 100, concurrency=1)
    transactions = value(conn, "SELECT count(DISTINCT xmin::text) FROM outbox.workflow_states")
    assert transactions <= 20
    opened = 100 - transactions
    assert found["outbox handler"] <= opened + len(writing) + 2 * transactions + 20
