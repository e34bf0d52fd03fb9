"""Lists of workflows: what is found, in which order, page by page, and how far a list looks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import QUICK, Post, deployed, drain, make_posts, value
from kit.waits import HOUR, PAYMENT, QUESTION, TIMED, Order, Task, families, orders
from outbox import (
    Go,
    InvalidInput,
    Page,
    Pipeline,
    Reject,
    Run,
    WaitForChildren,
    Workflow,
    WrongCursor,
    decide,
    signal,
)
from outbox.database import statements

Conn = psycopg.Connection[Any]
MAINTENANCE = statements.load("maintenance")


def entities(page: Page[Any]) -> list[str]:
    return [workflow.entity_id for workflow in page]


def pages(pipeline: Pipeline[Any], conn: Conn, **asked: Any) -> Iterator[list[str]]:
    """Yields the entities of each page to the end of the list."""
    after = None
    while True:
        page = pipeline.find(conn, after=after, **asked)
        yield entities(page)
        if page.after is None:
            return
        after = page.after


def all_of(pipeline: Pipeline[Any], conn: Conn, **asked: Any) -> list[str]:
    return [entity for page in pages(pipeline, conn, limit=2, **asked) for entity in page]


def work(pipeline: str = "p", **options: Any) -> Pipeline[Any]:
    """Returns NEW -> WAITING or DONE; an entity that begins with "bad" dies, one with "wait" waits."""
    made: Pipeline[Any] = Pipeline(pipeline, initial="NEW", final={"DONE", "ODD"})

    @made.stage("work", on="NEW", to={"WAITING", "DONE"}, retry=QUICK, **options)
    def handle(run: Run[Any]) -> Go[Any]:
        if run.entity_id.startswith("bad"):
            raise Reject(f"customer {run.entity_id} owes {len(run.entity_id)}.50 since 2024-01-0{len(run.entity_id)}")
        return Go("WAITING" if run.entity_id.startswith("wait") else "DONE")

    made.allow("WAITING", to={"DONE", "NEW", "ODD"})
    return made


@pytest.fixture
def worked(conn: Conn, dsn: str) -> Pipeline[Any]:
    """In order: wait1, bad1, done1, wait2 ... wait5, bad5, done5 have been worked on; new1 and new2 have not."""
    pipeline = deployed(conn, work())
    pipeline.submit_many(conn, [(f"{what}{n}", {"n": n}) for n in range(1, 6) for what in ("wait", "bad", "done")])
    drain(pipeline, dsn)
    pipeline.submit_many(conn, [("new1", {}), ("new2", {})])
    return pipeline


WAITING, BAD, DONE = ([f"{what}{n}" for n in range(1, 6)] for what in ("wait", "bad", "done"))


def test_each_filter_finds_what_it_says_in_its_order(conn: Conn, worked: Pipeline[Any]) -> None:
    assert set(all_of(worked, conn, status="WAITING")) == set(WAITING)
    assert sorted(all_of(worked, conn, status="NEW")) == sorted([*BAD, "new1", "new2"])
    assert all_of(worked, conn, status="DONE") == DONE[::-1], "what has ended: the newest first"
    assert all_of(worked, conn)[:2] == ["new2", "new1"]
    assert len(all_of(worked, conn)) == 17
    assert all_of(worked, conn, entity="bad") == BAD
    assert all_of(worked, conn, entity="bad", status="DONE") == []
    assert all_of(worked, conn, entity="w", status="WAITING", waits_for="change") == WAITING
    assert sorted(all_of(worked, conn, dead=True)) == BAD
    assert all_of(worked, conn, dead=True, status="WAITING") == []
    assert sorted(all_of(worked, conn, dead=True, entity="bad3")) == ["bad3"]
    assert all_of(worked, conn, waits_for="worker") == ["new1", "new2"]
    assert all_of(worked, conn, waits_for="timer") == []
    assert set(all_of(worked, conn, waits_for="change")) == set(WAITING)
    assert len(all_of(worked, conn, older=0)) == 12
    assert all_of(worked, conn, older=HOUR) == []
    assert all_of(worked, conn, status="NOWHERE") == []


def test_any_filters_together_find_what_fits_each_of_them(conn: Conn, worked: Pipeline[Any]) -> None:
    everything = list(worked.find(conn))

    def fits(each: Workflow[Any], asked: dict[str, Any]) -> bool:
        ended = each.state == "finished"
        return (
            (asked["status"] or each.status) == each.status
            and each.entity_id.startswith(asked["entity"] or "")
            and (asked["waits_for"] or each.waits_for) == each.waits_for
            and (not asked["dead"] or each.state == "dead")
            and (asked["error"] is None or each.kind == asked["error"])
            and (asked["older"] is None or not ended or asked["status"] is not None)
        )

    kind = value(conn, "SELECT kind FROM outbox.dead_jobs LIMIT 1")
    choices: dict[str, tuple[Any, ...]] = {
        "status": (None, "WAITING", "DONE"), "entity": (None, "done", "bad"), "older": (None, 0),
        "waits_for": (None, "change"), "dead": (False, True), "error": (None, kind),
    }  # fmt: skip
    for chosen in product(*choices.values()):
        asked = dict(zip(choices, chosen, strict=True))
        wanted = {each.entity_id for each in everything if fits(each, asked)}
        assert set(entities(worked.find(conn, **asked))) == wanted, asked


def test_those_that_have_not_ended_come_in_the_order_in_which_they_came_to_their_status(
    conn: Conn, worked: Pipeline[Any]
) -> None:
    for entity in ("wait3", "wait1"):
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'NEW' WHERE entity_id = %s", [entity])
    waiting = list(entities(worked.find(conn, status="WAITING")))
    times = [worked.get(conn, entity) for entity in waiting]
    assert [each.since for each in times if each] == sorted(each.since for each in times if each)
    assert entities(worked.find(conn, status="NEW"))[-4:] == ["new1", "new2", "wait3", "wait1"]
    conn.execute("SELECT outbox.retry('p', 'bad2')")
    assert entities(worked.find(conn, status="NEW"))[-1] == "bad2", "a new job has a later place"


def test_a_list_that_changes_between_its_pages_misses_none_and_shows_none_twice_that_stays(
    conn: Conn, worked: Pipeline[Any]
) -> None:
    first = worked.find(conn, status="WAITING", limit=2)
    staying = entities(worked.find(conn, status="WAITING"))[2:]
    for entity in entities(first):
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'DONE' WHERE entity_id = %s", [entity])
    assert entities(worked.find(conn, status="WAITING", after=first.after)) == staying
    first = worked.find(conn, status="NEW", limit=3)
    for entity in entities(first):
        conn.execute("SELECT outbox.retry('p', %s)", [entity])
    rest = entities(worked.find(conn, status="NEW", after=first.after))
    assert {*entities(first), *rest} == {*BAD, "new1", "new2"}
    assert all(entity in entities(first) for entity in rest if rest.count(entity) > 1)


def test_an_index_leads_to_the_rare_among_many(conn: Conn, admin_dsn: str, worked: Pipeline[Any]) -> None:
    """Statuses, kinds of errors and assignees that few have, behind more rows than a list may look at."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("SET session_replication_role = replica")
        admin.execute(
            "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status) "
            "SELECT 'p', 'many' || n, 'WAITING' FROM generate_series(1, 12000) AS n"
        )
        admin.execute(
            "INSERT INTO outbox.resting (workflow_id, pipeline, status) "
            "SELECT id, pipeline, current_status FROM outbox.workflow_states WHERE entity_id LIKE 'many%'"
        )
    assert sorted(entities(worked.find(conn, status="NEW"))) == sorted([*BAD, "new1", "new2"])
    assert entities(worked.find(conn, waits_for="worker", limit=1)) == ["new1"]
    assert len(worked.find(conn, dead=True)) == 5
    page = worked.find(conn, status="DONE")
    assert (entities(page), page.bounded) == ([], True), "the newest ten thousand of all are not it"
    page = worked.find(conn, status="DONE", after=page.after)
    assert (entities(page), page.after, page.bounded) == (DONE[::-1], None, False)
    page = worked.find(conn, status="WAITING", waits_for="deadline")
    assert (entities(page), page.bounded) == ([], True)
    pages_of = list(pages(worked, conn, status="WAITING", waits_for="deadline"))
    assert pages_of == [[]] * len(pages_of)
    assert 6 <= len(pages_of) <= 8
    conn.execute(
        "UPDATE outbox.resting SET since = now() - interval '2 days' WHERE place < (SELECT min(place) + 2 FROM outbox.resting)"
    )
    page = worked.find(conn, older=timedelta(days=1))
    assert (len(page), page.after) == (2, None), "it stops at those that are too young"


def test_questions_are_found_by_whom_they_ask(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(lambda run: TIMED if run.entity_id < "c" else QUESTION))
    pipeline.submit_many(conn, [(entity, Order()) for entity in "abcde"])
    drain(pipeline, dsn)
    assert sorted(all_of(pipeline, conn, assignee="sarah")) == ["a", "b"]
    assert all_of(pipeline, conn, assignee="tom") == []
    assert len(all_of(pipeline, conn, waits_for="approval")) == 5
    assert len(all_of(pipeline, conn, waits_for="approval", entity="d")) == 1
    assert all_of(pipeline, conn, assignee="sarah", entity="b") == ["b"]
    (found,) = pipeline.find(conn, entity="a")
    assert (found.state, found.waits_for, found.assignee) == ("waiting", "approval", "sarah")
    assert found.until
    assert found.until - datetime.now(UTC) > timedelta(minutes=50)
    decide(conn, pipeline, "a", "approve", by="sarah")
    assert all_of(pipeline, conn, assignee="sarah") == ["b"]


def test_waits_are_found_by_what_they_wait_for(conn: Conn, dsn: str) -> None:
    pipeline = orders(lambda run: {"a": PAYMENT, "b": Go("WAITING")}.get(run.entity_id, QUESTION))
    pipeline.deadline("WAITING", hours=1, to="LATE")
    deployed(conn, pipeline).submit_many(conn, [(entity, Order()) for entity in "abc"])
    drain(pipeline, dsn)
    assert all_of(pipeline, conn, waits_for="signal") == ["a"]
    assert all_of(pipeline, conn, waits_for="signal payment") == ["a"]
    assert all_of(pipeline, conn, waits_for="signal other") == []
    assert all_of(pipeline, conn, waits_for="deadline") == ["b"]
    signal(conn, pipeline, "a", "payment")
    assert all_of(pipeline, conn, waits_for="signal") == []
    parents, tasks = families(lambda run: run.spawn(tasks, "t", Task()), WaitForChildren(to="MERGED"))
    deployed(conn, tasks)
    deployed(conn, parents).submit(conn, "a", Task())
    drain(parents, dsn)
    assert all_of(parents, conn, waits_for="children") == ["a"]


def test_an_in_progress_status_is_a_list_of_its_own(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, work(running="WORKING"))
    pipeline.submit_many(conn, [(f"e{n}", {}) for n in range(4)])
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'WORKING' WHERE entity_id = 'e2'")
    assert all_of(pipeline, conn, status="WORKING") == ["e2"]
    assert sorted(all_of(pipeline, conn, status="NEW")) == ["e0", "e1", "e3"]
    assert sorted(all_of(pipeline, conn, older=0)) == ["e0", "e1", "e2", "e3"]


def test_a_workflow_is_typed_frozen_and_its_data_is_upgraded(conn: Conn, dsn: str) -> None:
    old: Pipeline[Any] = Pipeline("posts", initial="RECEIVED", final={"DONE"})
    old.stage("enrich", on="RECEIVED", to="DONE")(lambda run: None)
    deployed(conn, old).submit(conn, "a", {"text": "hello"})
    old.submit(conn, "b", {"nothing": 1})
    new = Pipeline("posts", data=Post, initial="RECEIVED", final={"DONE"}, version=2)
    new.migrate_data(1, lambda document: {"content": document["text"]})
    found = new.get(conn, "a")
    assert isinstance(found, Workflow)
    assert found.data == Post(content="hello")
    assert (found.status, found.state, found.stage, found.attempt, found.waits_for) == (
        "RECEIVED", "ready", "enrich", 0, "worker",
    )  # fmt: skip
    with pytest.raises(FrozenInstanceError):
        found.status = "DONE"  # type: ignore[misc]
    unreadable = new.find(conn, entity="b").workflows[0]
    with pytest.raises(KeyError):
        _ = unreadable.data
    assert new.get(conn, "c") is None
    assert new.history(conn, "c") == []


def test_the_history_is_the_latest_changes_in_their_order(conn: Conn, worked: Pipeline[Any]) -> None:
    changes = worked.history(conn, "wait1")
    assert [(change.from_status, change.to_status, change.version) for change in changes] == [
        (None, "NEW", 1), ("NEW", "WAITING", 2),
    ]  # fmt: skip
    assert (changes[1].stage, changes[1].attempt) == ("work", 1)
    assert worked.history(conn, "wait1", limit=1) == changes[1:]


def test_an_async_connection_is_given_the_same(conn: Conn, dsn: str, worked: Pipeline[Any]) -> None:
    async def ask() -> tuple[Any, ...]:
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            return (
                await worked.find(other, status="WAITING", limit=2),
                await worked.get(other, "wait1"),
                await worked.history(other, "wait1"),
            )

    assert asyncio.run(ask()) == (
        worked.find(conn, status="WAITING", limit=2), worked.get(conn, "wait1"), worked.history(conn, "wait1"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"limit": 0}, "limit"), ({"limit": 10_001}, "limit"), ({"limit": True}, "limit"), ({"limit": 1.5}, "limit"),
        ({"older": -1}, "older"), ({"older": "2d"}, "older"), ({"older": float("nan")}, "older"), ({"older": 1e12}, "older"),
        ({"waits_for": "godot"}, "waits_for"), ({"waits_for": ""}, "waits_for"), ({"status": 5}, "status"),
        ({"entity": "a\0"}, "entity"), ({"entity": "e" * 513}, "entity"), ({"after": ""}, "after"),
    ],
)  # fmt: skip
def test_what_no_list_can_have_is_refused_before_any_sql(conn: Conn, asked: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        work().find(conn, **asked)
    assert caught.value.field == field
    with pytest.raises(InvalidInput):
        work().history(conn, "a", limit=0)


@pytest.mark.parametrize("after", ["p:1", "i:1", "x", "i:", "e:[]", "d:-1", "p:99999999999999999999"])
def test_a_cursor_of_another_list_is_refused(conn: Conn, worked: Pipeline[Any], after: str) -> None:
    with pytest.raises(WrongCursor, match="is not of this list") as caught:
        worked.find(conn, after=after)
    assert caught.value.after == after


def test_entities_of_any_characters_are_paged(conn: Conn, worked: Pipeline[Any]) -> None:
    odd = ['q"', "q", "q'", "q\\", "q%", "q_", "qé", "q\U0001f600", 'q", "p', "q]"]
    worked.submit_many(conn, [(entity, {}) for entity in odd])
    assert all_of(worked, conn, entity="q") == sorted(odd, key=str.encode)
    assert all_of(worked, conn, entity="q%") == ["q%"]
    assert all_of(worked, conn, entity="q\\") == ["q\\"]


# What lists are read by.


def resting(conn: Conn) -> list[str]:
    found = conn.execute(
        "SELECT w.entity_id FROM outbox.resting AS s JOIN outbox.workflow_states AS w ON w.id = s.workflow_id "
        "AND w.current_status = s.status ORDER BY s.place"
    )
    return [entity for (entity,) in found]


REST = """SELECT w.id FROM outbox.workflow_states AS w JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
WHERE r.stage IS NULL AND NOT r.final"""


def agree(conn: Conn) -> bool:
    """Tells whether exactly the workflows that rest are noted."""
    return bool(
        value(
            conn,
            f"SELECT ARRAY({REST} ORDER BY 1) = ARRAY(SELECT s.workflow_id FROM outbox.resting AS s JOIN outbox.workflow_states AS w "
            "ON w.id = s.workflow_id AND w.current_status = s.status ORDER BY 1) "
            "AND (SELECT count(*) FROM outbox.resting) = (SELECT count(*) FROM (" + REST + ") AS r)",
        )
    )


def test_a_workflow_is_noted_while_it_rests_whoever_moves_it(conn: Conn, worked: Pipeline[Any]) -> None:
    assert sorted(resting(conn)) == WAITING
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'NEW' WHERE entity_id = 'wait1'")
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'ODD' WHERE entity_id = 'wait2'")
    conn.execute("DELETE FROM outbox.workflow_states WHERE entity_id = 'wait3'")
    conn.execute("UPDATE outbox.workflow_states SET metadata = '{}'")
    assert sorted(resting(conn)) == ["wait4", "wait5"]
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status) "
        "VALUES ('p', 'x', 'WAITING'), ('p', 'y', 'NEW'), ('p', 'z', 'DONE')"
    )
    assert resting(conn)[-1] == "x"
    assert agree(conn)


def test_a_deploy_notes_who_rests_by_its_routes(conn: Conn, dsn: str, worked: Pipeline[Any]) -> None:
    taken = work()
    taken.stage("take", on="WAITING", to="DONE")(lambda run: None)
    deployed(conn, taken)
    assert resting(conn) == []
    assert sorted(all_of(taken, conn, status="WAITING")) == WAITING
    deployed(conn, work())
    assert sorted(resting(conn)) == WAITING
    ended: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE", "ODD", "WAITING"})
    ended.stage("work", on="NEW", to={"WAITING", "DONE", "ODD"})(lambda run: None)
    deployed(conn, ended)
    assert agree(conn)
    assert sorted(all_of(ended, conn, status="WAITING")) == WAITING


def test_another_trigger_that_moves_it_on_leaves_it_noted_where_it_is(conn: Conn, admin_dsn: str, dsn: str) -> None:
    pipeline = deployed(conn, work())
    conn.execute(
        "CREATE FUNCTION outbox.on() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "UPDATE outbox.workflow_states SET current_status = 'ODD' WHERE id = NEW.id AND current_status = 'WAITING' "
        "AND entity_id LIKE '%2'; RETURN NULL; END $$"
    )
    conn.execute(
        "CREATE TRIGGER a_first AFTER UPDATE ON outbox.workflow_states FOR EACH ROW EXECUTE FUNCTION outbox.on()"
    )
    pipeline.submit_many(conn, [(f"wait{n}", {}) for n in range(1, 4)])
    drain(pipeline, dsn)
    assert agree(conn)
    assert sorted(resting(conn)) == ["wait1", "wait3"]


def fold(conn: Conn) -> None:
    for name in ("counts_fold", "deaths_fold"):
        conn.execute(MAINTENANCE[name])


@pytest.mark.parametrize("folds", [0, 1, 2])
def test_the_kind_of_an_error_is_counted_as_jobs_die_and_are_retried(
    conn: Conn, worked: Pipeline[Any], folds: int
) -> None:
    def kinds() -> list[tuple[Any, ...]]:
        for _ in range(folds):
            fold(conn)
        return conn.execute("SELECT kind, jobs, first_at <= last_at FROM outbox.errors").fetchall()

    assert kinds() == [("customer # owes # since #", 5, True)]
    assert len(all_of(worked, conn, error="customer # owes # since #")) == 5
    assert len(all_of(worked, conn, error="customer bad7 owes 5.50 since 2024-01-04", status="NEW")) == 5
    assert all_of(worked, conn, error="customer") == []
    conn.execute("SELECT outbox.retry('p', 'bad1')")
    conn.execute("UPDATE outbox.dead_jobs SET error = 'other' WHERE entity_id = 'bad2'")
    conn.execute("DELETE FROM outbox.workflow_states WHERE entity_id = 'bad3'")
    assert sorted(kinds()) == [("customer # owes # since #", 2, True), ("other", 1, True)]
    assert value(conn, "SELECT dead FROM outbox.overview WHERE status = 'NEW'") == 3
    conn.execute("DELETE FROM outbox.workflow_states")
    assert kinds() == []
    fold(conn)
    assert value(conn, "SELECT count(*) FROM outbox.error_kinds") == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("ValueError: no customer 17", "ValueError: no customer #"),
        ("ValueError: no customer cus_8fK2 (app.py:11 in pay)", "ValueError: no customer # (app.py:# in pay)"),
        ("Timeout after 30.5 s at 2026-11-30T00:01:12.123+01:00", "Timeout after # s at #"),
        ("no row 01a229cf-7efa-749c-b854-e47ead80e8ff, and 0xdeadbeef1", "no row #, and #"),
        ("mail to jo.doe+x@example.com bounced: 550", "mail to # bounced: #"),
        ("connect to 10.0.0.7:5432 failed", "connect to # failed"),
        ("\n  first line 1\nsecond line 2", "first line #"),
        ("worker 7 was lost during attempt 3, the last one", "worker # was lost during attempt #, the last one"),
        ("kein Kunde Müller-7 in Zürich", "kein Kunde Mü# in Zürich"),
        ("x" * 500, "x" * 200),
        ("", ""),
    ],
)
def test_the_kind_of_an_error_has_no_ids_and_no_numbers(conn: Conn, error: str, kind: str) -> None:
    assert value(conn, "SELECT outbox.error_kind(%s)", error) == kind
    assert value(conn, "SELECT outbox.error_kind(%s)", kind) == kind, "a kind is its own kind"


@pytest.mark.parametrize("folds", [0, 1, 2])
def test_the_flow_of_a_minute_tells_how_many_came_also_where_as_many_left(conn: Conn, dsn: str, folds: int) -> None:
    pipeline = deployed(conn, work())
    pipeline.submit_many(conn, [("wait1", {}), ("wait2", {}), ("done", {})])
    drain(pipeline, dsn)
    # One statement: as many come to WAITING... and to NEW as leave it.
    conn.execute(
        "UPDATE outbox.workflow_states SET current_status = CASE entity_id WHEN 'wait1' THEN 'NEW' ELSE 'ODD' END "
        "WHERE current_status = 'WAITING'"
    )
    for _ in range(folds):
        fold(conn)
    found = conn.execute(
        "SELECT status, sum(came), sum(went) FROM outbox.flow GROUP BY status ORDER BY status"
    ).fetchall()
    assert found == [("DONE", 1, 0), ("NEW", 4, 3), ("ODD", 1, 0), ("WAITING", 2, 2)]
    conn.execute("DELETE FROM outbox.workflow_states")
    assert value(conn, "SELECT sum(went) FROM outbox.flow") == 5, "what is deleted has not flowed"


def test_a_status_that_gains_as_many_as_it_loses_in_one_statement_leaves_a_trace(conn: Conn) -> None:
    loop: Pipeline[Any] = Pipeline("p", initial="A", final=())
    loop.allow("A", to={"B"})
    loop.allow("B", to={"A"})
    deployed(conn, loop).submit_many(conn, [("a", {}), ("b", {})])
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'B' WHERE entity_id = 'b'")
    fold(conn)
    conn.execute(
        "UPDATE outbox.workflow_states SET current_status = CASE current_status WHEN 'A' THEN 'B' ELSE 'A' END"
    )
    assert conn.execute("SELECT status, sum(came), sum(went) FROM outbox.flow GROUP BY 1 ORDER BY 1").fetchall() == [
        ("A", 3, 2), ("B", 2, 1),
    ]  # fmt: skip


def test_the_flow_is_kept_for_a_week(conn: Conn) -> None:
    conn.execute(
        "INSERT INTO outbox.status_flow SELECT date_trunc('minute', now()) - days * interval '1 day', 'p', 'A', 1, 0 "
        "FROM unnest(ARRAY[1, 6, 8, 9]) AS days"
    )
    fold(conn)
    assert value(conn, "SELECT count(*) FROM outbox.flow") == 2


# The command line.


def test_list_prints_a_page_and_how_to_go_on(conn: Conn, outbox: Outbox, worked: Pipeline[Any]) -> None:
    said = outbox("list", "--pipeline", "p", "--status", "WAITING", "--limit", "3").out.splitlines()
    assert said[0].split() == [
        "pipeline",
        "entity",
        "status",
        "for",
        "state",
        "waits",
        "for",
        "assignee",
        "attempt",
        "error",
    ]
    assert len(said) == 5
    *_, after = said[-1].split()
    assert said[-1].startswith("go on with --after p:")
    rest = outbox("list", "--pipeline", "p", "--status", "WAITING", "--after", after).out.splitlines()
    assert len(rest) == 3
    found = outbox("list", "--dead", "--error", "customer # owes # since #", "--limit", "2", "--json").json
    assert found.keys() == {"workflows", "after", "bounded"}
    assert [row["kind"] for row in found["workflows"]] == ["customer # owes # since #"] * 2
    assert found["workflows"][0]["metadata"].keys() == {"n"}
    assert outbox("list", "--older", "2h").out == "no such workflows\n"
    assert "is not a time of" in outbox("list", "--older", "2 hours", code=2).err
    assert "is not of this list" in outbox.fails("list", "--after", "p:1")


def test_dead_tells_the_kinds_of_errors_and_their_numbers(conn: Conn, outbox: Outbox, worked: Pipeline[Any]) -> None:
    (row,) = outbox("dead", "--kinds", "--json").json
    assert (row["pipeline"], row["stage"], row["kind"], row["jobs"]) == ("p", "work", "customer # owes # since #", 5)
    assert "customer # owes # since #" in outbox("dead", "--kinds").out
    assert "… and 3 more" in outbox("dead", "--error", "customer # owes # since #", "--limit", "2").out
    assert outbox("dead", "--error", "other").out == "no dead jobs\n"


def test_status_is_in_the_order_of_the_flow(conn: Conn, outbox: Outbox) -> None:
    deployed(conn, make_posts())
    said = [line.split()[1] for line in outbox("status").out.splitlines() if line.startswith("posts")]
    assert said == ["RECEIVED", "ENRICHED", "WAITING_FOR_REVIEW", "APPROVED", "COMPLETED", "REJECTED"]


def test_a_bound_is_told_on_the_command_line(conn: Conn, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = deployed(conn, work())
    pipeline.submit_many(conn, [(f"wait{n}", {}) for n in range(2_001)])
    said = outbox("list", "--waits-for", "worker", "--older", "0s", "--entity", "wait", "--status", "DONE").out
    assert "as many workflows were looked at as one page may look at: there may be more" in said
    assert "go on with --after 'e:" in said
