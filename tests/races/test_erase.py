"""Erasing, and what else happens to the workflow at the moment, in every order of their steps: no text is left.

See kit/scenes.py and kit/interleave.py.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kit.interleave import Explore, Scene
from kit.pipelines import QUICK, Post, deployed, value
from kit.scenes import Table, books_are_right, holding
from outbox import Change, Pipeline, Run, signal
from outbox.database.steps import Call, perform
from outbox.definition.run import Message
from outbox.engine import blobs, checkpoint, claim, commit
from outbox.engine.job import Failed, Finished, Job
from outbox.engine.lane import Lane

Conn = psycopg.Connection[Any]
MARK = "Zyxwvut"
ENDS = ["commit", "rollback"]


def people() -> Pipeline[Post]:
    pipeline: Pipeline[Post] = Pipeline("p", data=Post, initial="NEW", final={"DONE"}, cancelled="CANCELLED")

    @pipeline.stage("work", on="NEW", to="DONE", retry=QUICK)
    async def work(run: Run[Post]) -> None: ...

    @pipeline.on_change("DONE", name="tell")
    async def tell(run: Run[Change]) -> None: ...

    return pipeline


class Person(Table):
    """A claimed job of a workflow with a text. Each act writes the text somewhere else, under the fence or not."""

    def __init__(self, conn: Conn, pipeline: Pipeline[Any]) -> None:
        conn.execute("SET outbox.retention = 'on'")
        for table in (
            "messages",
            "signals",
            "dead_jobs",
            "dead_counts",
            "error_kinds",
            "checkpoints",
            "blob_uses",
            "blobs",
            "blob_parts",
            "state_changes",
        ):
            conn.execute(f"DELETE FROM outbox.{table}".encode())
        super().__init__(conn, pipeline)

    def erase(self, conn: Conn) -> str:
        return str(self.pipeline.erase(conn, "e").status)

    def finish(self, conn: Conn) -> list[str]:
        outcome = Finished("DONE", f'{{"content": "{MARK}"}}', [Message("t", "k", f'"{MARK}"', None)])
        return ["moved"] if conn.execute(*commit.finish([(self.job, outcome)])).fetchall() else []

    def fail(self, conn: Conn) -> list[str]:
        return ["freed"] if conn.execute(*commit.fail([(self.job, Failed(MARK, 0.0))])).fetchall() else []

    def die(self, conn: Conn) -> list[str]:
        return ["died"] if conn.execute(*commit.fail([(self.job, Failed(MARK, None))])).fetchall() else []

    def keep(self, conn: Conn) -> list[str]:
        steps = blobs.keep(self.job, MARK.encode() * 10_000, "key", "f")

        def take(step: Any) -> Any:
            if isinstance(step, Call):
                return step.function()
            cursor = conn.execute(*step)
            return cursor.fetchall() if cursor.description else []

        return ["kept"] if perform(steps, take)[0] else []

    def note(self, conn: Conn) -> list[str]:
        params = {
            "id": self.job.workflow_id, "entered": self.job.entered, "stage": "work", "key": "key", "job": self.job.id,
            "worker": self.job.owner, "attempt": self.job.attempt, "function": "f", "result": f'"{MARK}"',
        }  # fmt: skip
        ((held, _),) = conn.execute(checkpoint.SQL["checkpoint_write"], params).fetchall()
        return ["kept"] if held else []


def marked(conn: Conn) -> list[str]:
    tables = [
        "actions", "blob_uses", "checkpoints", "dead_counts", "dead_jobs", "error_kinds", "jobs", "messages", "signals",
        "state_changes", "workflow_states",
    ]  # fmt: skip
    return [
        table for table in tables
        if value(conn, f"SELECT count(*) FROM outbox.{table} AS t WHERE t::text LIKE '%Zyxwvut%'")
    ]  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("act", ["finish", "fail", "die", "keep", "note", "give_back"])
def test_what_a_worker_writes_at_the_moment_is_erased_or_not_written(
    conn: Conn, explore: Explore, act: str, end: str
) -> None:
    pipeline = deployed(conn, people())

    def scene() -> Scene:
        person = Person(conn, pipeline)

        def check(outcomes: dict[str, Any]) -> None:
            assert outcomes["erase"] == ("DONE" if outcomes["worker"] == ["moved"] else "CANCELLED")
            assert marked(conn) == []
            assert value(conn, "SELECT count(*) FROM outbox.blob_uses") == 0
            assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0
            assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE pipeline <> 'p'") == 0
            books_are_right(conn)

        return Scene({"worker": holding(getattr(person, act), end), "erase": holding(person.erase)}, check)

    explore(scene)


def test_the_reaction_that_is_at_work_goes_with_what_it_writes(conn: Conn, explore: Explore) -> None:
    pipeline = deployed(conn, people())

    def scene() -> Scene:
        person = Person(conn, pipeline)
        assert person.finish(conn)
        job = claimed_reaction(conn, pipeline, person.second)

        def finish(conn: Conn) -> list[str]:
            outcome = Finished("DONE", None, [Message("told", "k", f'"{MARK}"', None)])
            return ["moved"] if conn.execute(*commit.finish([(job, outcome)])).fetchall() else []

        def check(outcomes: dict[str, Any]) -> None:
            assert outcomes["erase"] == "DONE"
            assert marked(conn) == []
            assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 1
            assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0

        return Scene({"reaction": holding(finish), "erase": holding(person.erase)}, check)

    explore(scene)


def claimed_reaction(conn: Conn, pipeline: Pipeline[Any], worker: int) -> Job:
    (stage,) = pipeline.reactions["tell"].stages.values()
    lane = Lane(stage, 10)
    statement, params = claim.request(worker, [(lane, 1)], 0, careful=True)
    claim.receive(worker, {("p/tell", stage.name): lane}, conn.execute(statement, params).fetchall())
    (job,) = lane.waiting
    return job


def test_a_signal_that_comes_at_the_moment_is_erased_or_comes_after(conn: Conn, explore: Explore) -> None:
    pipeline = deployed(conn, people())

    def scene() -> Scene:
        person = Person(conn, pipeline)
        order: list[str] = []

        def send(conn: Conn) -> None:
            signal(conn, pipeline, "e", "news", {"of": MARK})
            order.append("signal")

        def erase(conn: Conn) -> str:
            done = person.erase(conn)
            order.append("erase")
            return done

        def check(outcomes: dict[str, Any]) -> None:
            assert marked(conn) == (["signals"] if order == ["erase", "signal"] else [])

        return Scene({"signal": holding(send), "erase": holding(erase)}, check)

    explore(scene)


def test_of_two_at_once_both_are_told_and_the_history_has_both(conn: Conn, explore: Explore) -> None:
    pipeline = deployed(conn, people())

    def scene() -> Scene:
        person = Person(conn, pipeline)

        def check(outcomes: dict[str, Any]) -> None:
            assert outcomes == {"one": "CANCELLED", "other": "CANCELLED"}
            erased = "SELECT count(*) FROM outbox.state_changes WHERE reason = 'erased' AND from_status = to_status"
            assert value(conn, erased) == 2
            assert marked(conn) == []

        return Scene({"one": holding(person.erase), "other": holding(person.erase)}, check)

    explore(scene)
