"""What is done to all workflows of a list: to those that were meant, once, in the order of locks, and to no others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
import pytest

from apps.cli import posts
from kit.pipelines import Post, deployed, drain, status_of, value
from kit.waits import QUESTION, waiting
from outbox import InvalidInput, Pipeline, WaitForApproval
from outbox.operations import bulk
from outbox.operations.bulk import Bulk, Done

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]
WHERE = "SELECT current_status, count(*) FROM outbox.workflow_states GROUP BY 1 ORDER BY 1"


def lamps(conn: Conn, many: int) -> Pipeline[Any]:
    """Returns a pipeline whose workflows people switch ON and OFF, with so many that are OFF."""
    pipeline: Pipeline[Any] = Pipeline("lamps", initial="OFF", final={"GONE", "SOLD"}, cancelled="GONE")
    pipeline.allow("OFF", to={"ON", "SOLD"})
    pipeline.allow("ON", to="OFF")
    deployed(conn, pipeline)
    pipeline.submit_many(conn, ((f"lamp_{n:02}", {}) for n in range(many)))
    return pipeline


def now(conn: Conn) -> datetime:
    found: datetime = value(conn, "SELECT clock_timestamp()")
    return found


def through(conn: Conn, what: Bulk, limit: int = 2, between: Callable[[], object] = lambda: None) -> Done:
    """Does it batch by batch to the end, and returns the sums."""
    until, after, done, passed, why = now(conn), None, 0, 0, None
    while True:
        with conn.transaction():
            made = bulk.some(conn, what, until, after, limit)
        done, passed, why, after = done + made.workflows, passed + made.passed, made.why or why, made.after
        if after is None:
            return Done(done, passed, why, None)
        between()


def test_all_that_are_meant_are_moved_in_somebody_s_name_and_for_a_reason(conn: Conn) -> None:
    lamps(conn, 5)
    what = Bulk("move", {"pipeline": "lamps", "status": "OFF"}, to_status="ON", by="ann", reason="dark")
    assert through(conn, what) == Done(5, 0, None, None)
    told = conn.execute("SELECT DISTINCT actor, reason, login FROM outbox.state_changes WHERE to_status = 'ON'")
    assert told.fetchall() == [("ann", "dark", "outbox_owner")]
    assert value(conn, "SELECT current_setting('outbox.actor', true)") in (None, "")


def test_the_number_is_that_of_those_that_have_not_ended(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lamps(conn, 5).move(conn, "lamp_00", "SOLD")
    deployed(conn, posts)
    posts.submit_many(conn, ((f"bad_{n}", Post(content=f"rejected: customer {n}")) for n in range(3)))
    drain(posts, dsn)
    kind = value(conn, "SELECT kind FROM outbox.dead_jobs LIMIT 1")

    def counted(act: Any, stage: str | None = None, **filters: Any) -> tuple[int, bool]:
        return bulk.count(conn, Bulk(act, filters, stage))[:2]

    assert counted("move", pipeline="lamps") == counted("cancel", entity="lamp") == (4, True)
    assert counted("cancel", pipeline="lamps", status="OFF") == (4, True)
    assert counted("retry", pipeline="posts", error=kind) == counted("retry", "decide", dead=True) == (3, True)
    assert counted("retry", "enrich", dead=True) == counted("retry", pipeline="lamps") == (0, True)
    assert counted("retry", entity="bad_1") == (1, True)
    monkeypatch.setattr(bulk, "COUNTED", 2)
    assert counted("cancel", entity="lamp") == (1, False), "the first of them has been sold"


def test_what_comes_into_the_list_again_is_not_done_again(conn: Conn) -> None:
    lamps(conn, 3)
    what = Bulk("move", {"pipeline": "lamps", "status": "OFF"}, to_status="ON")
    switch_off = "UPDATE outbox.workflow_states SET current_status = 'OFF' WHERE current_status = 'ON'"
    done = through(conn, what, limit=1, between=lambda: conn.execute(switch_off))
    assert done.workflows == 3


def test_those_for_which_it_is_not_legal_or_that_have_moved_are_passed_over(conn: Conn, connect: Connect) -> None:
    lamps(conn, 4)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'ON' WHERE entity_id = 'lamp_00'")
    assert through(conn, Bulk("move", {"pipeline": "lamps"}, to_status="SOLD")) == Done(3, 1, None, None)
    assert conn.execute(WHERE).fetchall() == [("ON", 1), ("SOLD", 3)]


def test_one_that_moves_between_the_list_and_the_lock_is_left_where_it_went(conn: Conn, connect: Connect) -> None:
    lamps(conn, 2)
    other = connect(autocommit=False)
    other.execute("UPDATE outbox.workflow_states SET current_status = 'SOLD' WHERE entity_id = 'lamp_00'")
    made: list[Done] = []
    mover = threading.Thread(target=lambda: made.append(through(connect(), Bulk("cancel", {"pipeline": "lamps"}))))
    mover.start()
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while not value(conn, waits):
        pass
    other.commit()
    mover.join()
    assert made == [Done(1, 1, None, None)]
    assert conn.execute(WHERE).fetchall() == [("GONE", 1), ("SOLD", 1)]


def test_two_people_who_do_different_things_to_the_same_workflows_do_not_deadlock(conn: Conn, connect: Connect) -> None:
    lamps(conn, 40)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'ON'")
    # One list goes by entity, the other one by who has waited longest: it was moved in the other order.
    conn.execute("UPDATE outbox.resting SET place = -place")
    acts = (
        Bulk("move", {"pipeline": "lamps", "status": "ON"}, to_status="OFF"),
        Bulk("cancel", {"pipeline": "lamps", "entity": "lamp"}),
    )
    failed: list[BaseException] = []

    def act(what: Bulk) -> None:
        try:
            through(connect(), what, limit=10)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=act, args=[what]) for what in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_dead_jobs_of_a_stage_and_a_kind_run_again_and_others_stay(conn: Conn, dsn: str) -> None:
    deployed(conn, posts)
    posts.submit_many(conn, ((f"bad_{n}", Post(content=f"rejected: customer {n}")) for n in range(5)))
    posts.submit(conn, "other", Post(content="rejected: no reason"))
    drain(posts, dsn)
    kind = value(conn, "SELECT kind FROM outbox.dead_jobs WHERE entity_id = 'bad_1'")
    assert through(conn, Bulk("retry", {"pipeline": "posts", "error": kind}, "enrich")).workflows == 0
    assert through(conn, Bulk("retry", {"pipeline": "posts", "error": kind}, "decide", by="ann")).workflows == 5
    assert value(conn, "SELECT string_agg(entity_id, ',') FROM outbox.dead_jobs") == "other"
    assert value(conn, "SELECT count(*) FROM outbox.actions WHERE actor = 'ann' AND action = 'retry'") == 5


def test_what_has_ended_or_has_no_status_for_it_is_not_cancelled(conn: Conn, dsn: str) -> None:
    pipeline = lamps(conn, 3)
    pipeline.move(conn, "lamp_01", "SOLD")
    deployed(conn, posts)
    posts.submit(conn, "lamp_of_posts", Post())
    assert through(conn, Bulk("cancel", {"entity": "lamp"}, by="ann", reason="old")) == Done(2, 1, None, None)
    assert (status_of(conn, "lamp_01"), status_of(conn, "lamp_of_posts")) == ("SOLD", "RECEIVED")


def test_one_that_is_refused_keeps_no_other_from_it_and_says_why(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, lambda run: WaitForApproval(
        "Pay?", options=QUESTION.options, approvers={"finance": 2} if run.data.total else None))  # fmt: skip
    pipeline.submit_many(conn, ((f"b{n}", {"total": 0}) for n in range(3)))
    drain(pipeline, dsn)
    done = through(conn, Bulk("move", {"pipeline": "orders", "status": "WAITING"}, to_status="PAID"), limit=10)
    assert (done.workflows, done.passed) == (3, 1)
    assert done.why
    assert "only votes" in done.why
    assert status_of(conn, "a") == "WAITING"


@pytest.mark.parametrize("filters", [{}, {"pipeline": None, "dead": False}])
def test_an_empty_filter_is_refused(filters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="is empty"):
        Bulk("cancel", filters)
