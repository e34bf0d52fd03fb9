"""A commit that refers to a blob, and what removes it, in every order of their steps; and two that store the same.

See kit/interleave.py.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import psycopg
import pytest

from kit.interleave import Actor, Explore, Scene
from kit.pipelines import Post, deployed, one_stage, value
from kit.scenes import Table, holding
from outbox.database.steps import Call, Statement, perform
from outbox.engine import blobs
from outbox.engine.job import Job

Conn = psycopg.Connection[Any]
CONTENT = b"content" * 100
HASH = sha256(CONTENT)


def take(conn: Conn, step: Statement | Call) -> Any:
    if isinstance(step, Call):
        return step.function()
    cursor = conn.execute(*step)
    return cursor.fetchall() if cursor.description else []


def storing(job: Job) -> Any:
    """Stores the content as a result of `run.once`, which is tried again when its parts have gone."""
    return lambda conn: perform(blobs.keep(job, CONTENT, "key", "f"), lambda step: take(conn, step))


def storing_at_last(job: Job, end: str) -> Any:
    """Stores the content, with the last step, which refers to it, in a transaction that ends so."""

    def take_last(conn: Conn, step: Statement | Call) -> Any:
        if isinstance(step, Call) or step[0] != blobs.SQL["blob_write"]:
            return take(conn, step)
        with conn.transaction(force_rollback=end == "rollback"):
            return take(conn, step)

    return lambda conn: perform(blobs.keep(job, CONTENT, "key", "f"), lambda step: take_last(conn, step))


def removing(conn: Conn) -> int:
    """Does what a sweep and erasing do, in the same steps: what is locked is looked at again by the next statement."""
    with conn.transaction():
        hashes = [
            h for (h,) in conn.execute("SELECT b.sha256 FROM outbox.blobs AS b WHERE b.loose FOR UPDATE SKIP LOCKED")
        ]
        conn.execute("SELECT outbox.blobs_remove(%s)", [hashes])
        conn.execute(
            "UPDATE outbox.blob_parts SET loose_since = now() WHERE loose_since IS NULL AND NOT EXISTS (SELECT FROM outbox.blobs)"
        )
    with conn.transaction():
        parts = [
            h
            for (h,) in conn.execute(
                "SELECT p.sha256 FROM outbox.blob_parts AS p WHERE loose_since IS NOT NULL FOR UPDATE SKIP LOCKED"
            )
        ]
        return int(value(conn, "SELECT outbox.parts_remove(%s)", parts))


def whole(conn: Conn) -> bool:
    """Whether all that is referred to is there, and nothing else has stayed."""
    used = value(conn, "SELECT count(*) FROM outbox.blob_uses")
    assert value(conn, "SELECT count(*) FROM outbox.checkpoints") == used
    if used:
        assert value(conn, "SELECT outbox.blob(%s)", HASH.hexdigest()) == CONTENT
        assert value(conn, "SELECT count(*) FROM outbox.blob_parts WHERE loose_since IS NOT NULL") == 0
    return bool(used)


class Shelf(Table):
    """A claimed job, and the content of another one that nobody uses any more: it is about to be swept."""

    def __init__(self, conn: Conn, pipeline: Any) -> None:
        for table in ("checkpoints", "blob_uses", "blobs", "blob_parts"):
            conn.execute(f"DELETE FROM outbox.{table}".encode())
        super().__init__(conn, pipeline)
        storing(self.job)(conn)
        conn.execute("DELETE FROM outbox.checkpoints")
        conn.execute("DELETE FROM outbox.blob_uses")
        conn.execute("UPDATE outbox.blobs SET loose = true")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_commit_that_refers_to_a_blob_and_its_removal(conn: Conn, explore: Explore, end: str) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        shelf = Shelf(conn, pipeline)

        def check(outcomes: dict[str, Any]) -> None:
            assert outcomes["store"] == (True, True)
            assert whole(conn)

        return Scene({"store": storing(shelf.job), "remove": holding(removing, end)}, check)

    played = explore(scene)
    assert {each.outcomes["remove"] == 1 for each in played} == ({True, False} if end == "commit" else {False})


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_reference_that_is_not_committed_yet_and_a_removal(conn: Conn, explore: Explore, end: str) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        shelf = Shelf(conn, pipeline)

        def check(outcomes: dict[str, Any]) -> None:
            assert whole(conn) == (end == "commit")

        return Scene({"store": storing_at_last(shelf.job, end), "remove": removing}, check)

    explore(scene)


def test_two_that_store_the_same_content(conn: Conn, explore: Explore) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        shelf = Shelf(conn, pipeline)
        conn.execute("DELETE FROM outbox.blobs")
        conn.execute("DELETE FROM outbox.blob_parts")
        pipeline.submit(conn, "f", Post())
        (other,) = shelf.claimed(conn, shelf.second)

        def check(outcomes: dict[str, Any]) -> None:
            assert outcomes["store"] == outcomes["other"] == (True, True)
            assert value(conn, "SELECT count(*) FROM outbox.blob_uses") == 2
            assert value(conn, "SELECT count(*) FROM outbox.blobs") == 1
            assert value(conn, "SELECT count(*) FROM outbox.blob_parts") == 1
            assert whole(conn)

        return Scene({"store": storing(shelf.job), "other": holding(storing(other))}, check)

    explore(scene)


def test_data_that_names_a_blob_again_and_the_sweep_that_ends_its_use(conn: Conn, explore: Explore) -> None:
    """A person puts data back as it was, while the sweep has seen that it is in use no more."""
    pipeline = deployed(conn, one_stage(lambda run: None))
    named = psycopg.types.json.Jsonb({"content": "x", "history": {"sha256": HASH.hexdigest(), "size": len(CONTENT)}})

    def scene() -> Scene:
        shelf = Shelf(conn, pipeline)
        storing(shelf.job)(conn)
        conn.execute("UPDATE outbox.blob_uses SET entered = 0, kept_until = now() - interval '2 hours'")

        def put_back(conn: Conn) -> None:
            conn.execute("UPDATE outbox.workflow_states SET metadata = %s", [named])

        def sweep(conn: Conn) -> int:
            return int(value(conn, "SELECT outbox.blob_uses_sweep(1, 10)"))

        def check(outcomes: dict[str, Any]) -> None:
            conn.execute("SELECT outbox.blobs_sweep(0, 10)")
            assert value(conn, "SELECT outbox.blob(%s)", HASH.hexdigest()) == CONTENT

        return Scene({"put back": holding(put_back), "sweep": Actor(holding(sweep))}, check)

    explore(scene)


@pytest.mark.parametrize("end", ["looked at", "deleted", "erased"])
def test_a_use_that_is_written_again_while_it_ends(conn: Conn, explore: Explore, end: str) -> None:
    """A result is stored again under its blob's lock, and then its use is written. What ends the use locks in that order."""
    pipeline = deployed(conn, one_stage(lambda run: None))
    conn.execute("SET outbox.retention = 'on'")

    def scene() -> Scene:
        shelf = Shelf(conn, pipeline)
        storing(shelf.job)(conn)
        conn.execute("UPDATE outbox.blob_uses SET entered = 0, kept_until = now() - interval '2 hours'")
        ((workflow, hash_),) = conn.execute("SELECT workflow_id, sha256 FROM outbox.blob_uses").fetchall()

        def store(conn: Conn) -> None:
            if value(conn, "SELECT 1 FROM outbox.blobs WHERE sha256 = %s FOR NO KEY UPDATE", hash_) is None:
                return  # it would be written again
            conn.execute("UPDATE outbox.blobs SET loose = false WHERE sha256 = %s", [hash_])
            conn.execute(
                "INSERT INTO outbox.blob_uses (workflow_id, sha256, entered) VALUES (%s, %s, 1) "
                "ON CONFLICT (workflow_id, sha256) DO UPDATE SET kept_until = clock_timestamp()",
                [workflow, hash_],
            )

        ends = {
            "looked at": lambda conn: conn.execute("SELECT outbox.blob_uses_sweep(1, 10)"),
            "deleted": lambda conn: conn.execute("SELECT outbox.blobs_forget(%s)", [[workflow]]),
            "erased": lambda conn: conn.execute("SELECT outbox.erase_blobs(%s)", [[workflow]]),
        }

        def check(outcomes: dict[str, Any]) -> None:
            if end == "looked at":
                assert value(conn, "SELECT count(*) FROM outbox.blob_uses") == 1

        return Scene({"store": holding(store), "end": holding(lambda conn: bool(ends[end](conn)))}, check)

    explore(scene)
