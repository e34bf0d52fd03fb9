"""Before a deploy: who would be stranded by the new code; and data that was stored by the old one."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from kit.commands import Outbox
from kit.pipelines import deployed, drain, status_of, value
from kit.waits import PAYMENT, TIMED, Order, orders
from outbox import DefinitionError, InvalidInput, Pipeline, Run, Stranded
from outbox.definition import deploy
from outbox.definition.stranded import unreadable

Conn = psycopg.Connection[Any]


def test_data_that_the_same_code_has_stored_is_readable(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(TIMED))
    pipeline.submit_many(conn, [(f"e{n}", Order()) for n in range(5)])
    drain(pipeline, dsn)
    assert list(unreadable(conn, pipeline)) == []
    assert list(unreadable(conn, pipeline, every=True)) == []


def test_a_status_that_is_gone_is_one_problem_with_all_that_waits_there(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(TIMED))
    pipeline.submit_many(conn, [(f"e{n}", Order()) for n in range(3)])
    drain(pipeline, dsn)
    new: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT"})
    new.allow("NEW", to="SENT")
    with pytest.raises(Stranded) as refused:
        deploy.check(conn, new)
    assert refused.value.problems == (
        "this version no longer knows status WAITING: 3 workflows are in it. "
        'Keep it, rename it with orders.rename("WAITING", …), or move them on first',
    )


@pytest.mark.parametrize(
    ("wait", "words"),
    [
        (TIMED, ["the answer approve, which leads to PAID (a)", "its deadline, which leads to LATE (a)"]),
        (PAYMENT, ["the signal payment, which leads to PAID (a)", "its deadline, which leads to LATE (a)"]),
    ],
)
def test_who_waits_for_what_can_not_come_is_listed(conn: Conn, dsn: str, wait: Any, words: list[str]) -> None:
    pipeline = deployed(conn, orders(wait))
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)
    new: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT", "REFUSED", "LATE"})
    new.stage("ask", on="NEW", to="WAITING")(lambda run: None)
    new.stage("send", on="PAID", to="SENT")(lambda run: None)
    new.allow("WAITING", to="REFUSED")
    with pytest.raises(Stranded) as refused:
        deploy.check(conn, new)
    assert sorted(problem.split(", and ")[0] for problem in refused.value.problems) == sorted(
        f"1 workflow in WAITING waits for {text}" for text in words
    )


class Strict(BaseModel):
    total: int
    customer: str


def test_data_that_the_new_model_can_not_read_is_listed(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(TIMED))
    pipeline.submit_many(conn, [(f"e{n}", Order()) for n in range(5)])
    new: Pipeline[Any] = Pipeline("orders", data=Strict, initial="NEW", final={"SENT", "REFUSED", "LATE"})
    new.allow("NEW", to="SENT")
    for every, of in ((False, "a sample of 5"), (True, "all")):
        (line,) = unreadable(conn, new, every=every)
        assert line.startswith(f"data of 5 of {of} would not be readable: in NEW, customer: Field required (e")


def test_the_command_says_it_and_exits_1(conn: Conn, dsn: str) -> None:
    from apps.cli import orders as shop

    deployed(conn, shop)
    shop.submit(conn, "a", {"total": 100})
    outbox = Outbox(dsn)
    assert outbox("deploy", "--check", "--app", "apps.cli:orders").out == "orders: nothing to change\n"
    conn.execute("UPDATE outbox.workflow_states SET metadata = '{}'")
    said = outbox("deploy", "--check", "--all", "--app", "apps.cli:orders", code=1).out
    assert "orders: data of 1 of all would not be readable: in NEW, total: Field required (a)" in said
    assert outbox("deploy", "--all", "--app", "apps.cli:orders", code=2).out == ""


# Data of older versions.


class New(BaseModel):
    author: str
    words: int = 0


def second(handler: Any = lambda run: None) -> Pipeline[New]:
    """The pipeline in version 3 of its data; the first had `user`, the second `name`."""
    pipeline: Pipeline[New] = Pipeline("posts", data=New, initial="NEW", final={"DONE"}, version=3, plain=1)
    pipeline.stage("work", on="NEW", to="DONE")(handler)
    pipeline.migrate_data(1, lambda old: {"name": old["user"]})
    pipeline.migrate_data(2, lambda old: {"author": old["name"].title()})
    return pipeline


def test_stored_data_is_upgraded_on_read_one_version_at_a_time(conn: Conn, dsn: str) -> None:
    seen: list[str] = []

    def work(run: Run[New]) -> New:
        seen.append(run.data.author)
        return run.data.model_copy(update={"words": 7})

    pipeline = deployed(conn, second(work))
    for entity, document in (("a", '{"user": "ann"}'), ("b", '{"$version": 2, "name": "bob"}')):
        conn.execute(
            "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('posts', %s, %s::jsonb)",
            (entity, document),
        )
    pipeline.submit(conn, "c", New(author="Cid"))
    drain(pipeline, dsn)
    assert sorted(seen) == ["Ann", "Bob", "Cid"]
    stored = value(conn, "SELECT metadata FROM outbox.workflow_states WHERE entity_id = 'a'")
    assert stored == {"$version": 3, "author": "Ann", "words": 7}
    assert list(unreadable(conn, pipeline, every=True)) == []


def test_data_of_a_version_that_has_no_upgrade_is_dead_and_listed(conn: Conn, dsn: str) -> None:
    bare: Pipeline[New] = Pipeline("posts", data=New, initial="NEW", final={"DONE"}, version=2)
    bare.stage("work", on="NEW", to="DONE")(lambda run: None)
    deployed(conn, bare)
    conn.execute(
        """INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('posts', 'a', '{"$version": 1, "user": "x"}')"""
    )
    assert "has no migrate_data(1, …)" in next(unreadable(conn, bare))
    drain(bare, dsn)
    assert "has no migrate_data(1, …)" in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_an_old_worker_leaves_newer_data_to_newer_workers(conn: Conn, dsn: str) -> None:
    old: Pipeline[New] = Pipeline("posts", data=New, initial="NEW", final={"DONE"})
    old.stage("work", on="NEW", to="DONE")(lambda run: None)
    deployed(conn, old)
    new = second()
    new.submit(conn, "a", New(author="Ann"))
    drain(old, dsn)
    assert status_of(conn, "a") == "NEW"
    waits = (
        "SELECT error LIKE '%a newer worker can read it%' AND run_at > now() + interval '5 seconds' FROM outbox.jobs"
    )
    assert value(conn, waits)
    conn.execute("UPDATE outbox.jobs SET run_at = now()")
    drain(new, dsn)
    assert status_of(conn, "a") == "DONE"


@pytest.mark.parametrize("version", [0, 3, "1", 1.5])
def test_an_upgrade_that_makes_no_sense_is_refused_at_once(version: Any) -> None:
    pipeline: Pipeline[New] = Pipeline("posts", data=New, initial="NEW", version=3)
    with pytest.raises(DefinitionError):
        pipeline.migrate_data(version, dict)
    pipeline.migrate_data(1, dict)
    with pytest.raises(DefinitionError):
        pipeline.migrate_data(1, dict)


def test_data_with_a_version_is_an_object() -> None:
    numbers: Pipeline[list[int]] = Pipeline("posts", data=list[int], initial="NEW", version=2)
    with pytest.raises(InvalidInput, match="must be an object"):
        numbers.dump([1])
