"""Why a workflow does not move: each cause is planted, and named by one sentence with one remedy."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import outbox
from kit.commands import Outbox
from kit.pipelines import Post, deployed, drain, make_posts, one_stage, value
from kit.waits import HOUR, PAYMENT, QUESTION, TIMED, Order, Task, families, orders, put_off, waiting
from outbox import (
    Backoff,
    Go,
    NoWorkflow,
    Pipeline,
    Question,
    Retry,
    WaitForApproval,
    WaitForChildren,
    WaitForSignal,
    Why,
    why,
)

Conn = psycopg.Connection[Any]
LATER = Backoff(first=3600, max=3600, attempts=3)
OPTIONS = {"approve": "PAID", "reject": "REFUSED"}
WORKER = "INSERT INTO outbox.workers (id, name, stages, lease) VALUES (7, 'host:12', ARRAY[%s], '1 hour')"
RUNNING = "UPDATE outbox.jobs SET owner = 7, claimed_at = now(), attempt = 1"


def ready(conn: Conn, served: bool = True, **options: Any) -> None:
    """Entity "a" waits for stage p.work, which a worker serves."""
    pipeline = deployed(conn, one_stage(lambda run: None, **options))
    pipeline.submit(conn, "a", Post())
    if served:
        conn.execute(WORKER, ("p.work",))


def others(conn: Conn, count: int) -> None:
    """Makes jobs that are before the one of "a"."""
    deployed(conn, one_stage(lambda run: None)).submit_many(conn, [(f"o{n}", Post()) for n in range(count)])
    ready(conn)


def fails(error: Callable[[], Exception], **options: Any) -> Callable[[Any], None]:
    def work(run: Any) -> None:
        raise error()

    return work


def dead(conn: Conn, dsn: str) -> None:
    ready(conn, served=False)
    drain(one_stage(fails(lambda: outbox.Reject("no such customer"))), dsn)


def retried(conn: Conn, dsn: str, error: Callable[[], Exception]) -> None:
    ready(conn, served=False)
    drain(one_stage(fails(error), retry=LATER), dsn)


def children(conn: Conn, dsn: str, **wait: Any) -> None:
    def spawn(run: Any) -> None:
        for n in range(5):
            run.spawn(tasks, f"t{n}", Task(n=n))

    parents, tasks = families(spawn, WaitForChildren(to="MERGED", **wait))
    deployed(conn, tasks)
    deployed(conn, parents).submit(conn, "a", Task())
    drain(parents, dsn)


def a_dead_child(conn: Conn, dsn: str) -> None:
    children(conn, dsn)
    _, tasks = families(lambda run: None, None, fails(lambda: outbox.Reject("broken")))
    conn.execute("UPDATE outbox.jobs SET run_at = now() + interval '1 hour', due = false WHERE pipeline = 'tasks'")
    conn.execute(
        "UPDATE outbox.jobs SET run_at = now() WHERE workflow_id = (SELECT id FROM outbox.workflow_states WHERE entity_id = 't3')"
    )
    drain(tasks, dsn)


def stuck_after_children(conn: Conn, dsn: str) -> None:
    children(conn, dsn)
    conn.execute("DELETE FROM outbox.legal_changes WHERE pipeline = 'parents' AND to_status = 'MERGED'")
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'CANCELLED' WHERE pipeline = 'tasks'")


def overdue(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, TIMED)
    put_off(conn, 3700)


def deadline_of_the_pipeline(conn: Conn, dsn: str) -> None:
    pipeline = orders(None)
    pipeline.deadline("WAITING", hours=1, to="LATE")
    deployed(conn, pipeline).submit(conn, "a", Order())
    drain(pipeline, dsn)


def voted(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, WaitForApproval("Pay it?", options=OPTIONS, approvers={"finance": 2, "law": 1}))
    outbox.approve(conn, "orders", "a", by="ann", groups=["finance"])


def timer(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT"})
    pipeline.stage("pay", on="NEW", to="LATER")(lambda run: Go("LATER", after=HOUR))
    pipeline.stage("send", on="LATER", to="SENT")(lambda run: None)
    deployed(conn, pipeline).submit(conn, "a", Order())
    drain(pipeline, dsn)


def dead_end(conn: Conn, dsn: str) -> None:
    ready(conn)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'MOVED'")


def lost(conn: Conn, dsn: str) -> None:
    ready(conn, served=False)
    conn.execute(RUNNING)


def dead_end_but_a_cancellation(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE", "GONE"}, cancelled="GONE")
    pipeline.stage("work", on="NEW", to="MOVED")(lambda run: None)
    deployed(conn, pipeline).submit(conn, "a", {})
    drain(pipeline, dsn)


def after(*statements: str, **options: Any) -> Callable[[Conn, str], None]:
    """Plants the cause by statements after "a" is ready."""

    def plant(conn: Conn, dsn: str) -> None:
        ready(conn, **options)
        for statement in statements:
            conn.execute(statement.encode())

    return plant


PAUSE = (
    "INSERT INTO outbox.pauses (pipeline, stage, paused_by, reason) VALUES ('p', 'work', 'sarah', 'the bank is down')"
)
PUT_BACK = (
    "UPDATE outbox.jobs SET released = 3, error = 'its row is held', run_at = now() + interval '1 min', due = false"
)
CASES: dict[str, tuple[Callable[[Conn, str], Any], str, str, str]] = {
    # what is planted: how, the cause, what the sentence says, and the remedy
    "a person, with a deadline": (lambda conn, dsn: waiting(conn, dsn, TIMED), "person",
        'It waits for sarah to answer "Pay it?" (approve, reject), since * UTC, until * UTC, when it moves to LATE.',
        "outbox decide a OPTION --pipeline orders"),
    "a person, whoever it is": (lambda conn, dsn: waiting(conn, dsn, QUESTION), "person",
        'It waits for a person to answer "Pay it?" (approve, reject), since * UTC.', "outbox decide a OPTION --pipeline orders"),
    "several people": (lambda conn, dsn: waiting(conn, dsn, WaitForApproval(questions=[Question("Legal?", options=OPTIONS), Question("Paid?", options=OPTIONS)])), "person",
        'It waits for a person to answer "Legal?" (approve, reject) and 1 more, since * UTC.', "outbox decide --question *-*-* a OPTION --pipeline orders"),
    "votes": (voted, "person",
        'It waits for 2 of finance and 1 of law to answer "Pay it?" (approve, reject; votes so far: 1), since * UTC.', "outbox decide a OPTION --pipeline orders"),
    "a signal": (lambda conn, dsn: waiting(conn, dsn, WaitForSignal("paid", to="PAID")), "signal",
        'It waits for the signal "paid", since * UTC.', "outbox signal a paid --pipeline orders"),
    "a signal, with a deadline": (lambda conn, dsn: waiting(conn, dsn, PAYMENT), "signal",
        'It waits for the signal "payment", since * UTC, until * UTC, when it moves to LATE.', "outbox signal a payment *"),
    "children": (children, "children",
        "It waits for 5 children, since * UTC: t0 in tasks (NEW), t1 in tasks (NEW), t2 in tasks (NEW) and others.",
        "outbox show t0 --pipeline tasks"),
    "a child that is dead": (a_dead_child, "child dead",
        "It waits for 5 children, since * UTC: t3 in tasks (NEW, dead), t0 in tasks (NEW), t1 in tasks (NEW) and others.",
        "outbox retry t3 --pipeline tasks"),
    "children that have ended": (stuck_after_children, "children ended",
        "Its children have ended, but it has not moved from WAITING to MERGED: that is not a legal change.",
        "deploy a pipeline that allows it"),
    "a deadline that nobody keeps": (overdue, "overdue",
        "Its deadline passed at * UTC, and no worker has moved it to LATE.", "start a worker: *"),
    "a deadline of the pipeline": (deadline_of_the_pipeline, "deadline",
        "It waits in WAITING for somebody to change its status to LATE, PAID, REFUSED, until * UTC, when it moves to LATE.",
        "outbox set-status a STATUS --pipeline orders"),
    "a change by hand": (lambda conn, dsn: waiting(conn, dsn, None), "change",
        "It waits in WAITING for somebody to change its status to LATE, PAID, REFUSED.",
        "outbox set-status a STATUS --pipeline orders"),
    "its time": (timer, "time", "It waits for its time: stage send runs at * UTC.", "wait until then"),
    "an attempt that has failed": (lambda conn, dsn: retried(conn, dsn, lambda: ValueError("no luck")), "retry",
        "Attempt 1 of 4 of stage work failed, and the next one comes at * UTC: ValueError: no luck*", "see to the error, or wait"),
    "an attempt that asked for later": (lambda conn, dsn: retried(conn, dsn, lambda: Retry(after=HOUR)), "retry",
        "Attempt 1 of 4 of stage work failed, and the next one comes at * UTC: *", "see to the error, or wait"),
    "a dead job": (dead, "dead", "Its job of stage work died after 1 attempt, at * UTC: no such customer",
        "see to the error, then: outbox retry a --pipeline p"),
    "put back": (after(PUT_BACK), "put back",
        "Its job of stage work was put back 3 times, and is tried again at * UTC: its row is held", "see to the reason: *"),
    "put back, and ready": (after(PUT_BACK + ", released_by = 7", "UPDATE outbox.jobs SET due = true, run_at = now()"), "put back",
        "Its job of stage work was put back 3 times: its row is held", "see to the reason: *"),
    "running": (after(RUNNING + ", progress = 'page 3 of 9'"), "running",
        "Stage work has been running since * UTC on worker 7 (host:12), attempt 1: page 3 of 9.", "wait for its end or its timeout"),
    "a worker that is lost": (lost, "worker lost", "Worker 7, which runs stage work since * UTC, is gone.",
        "start a worker: outbox worker --app module:object --stage work"),
    "paused": (after(PAUSE), "paused", "Stage work is paused by sarah, since * UTC: the bank is down", "outbox resume p.work"),
    "no worker": (after(served=False), "no worker", "No worker serves stage work.", "outbox worker --app module:object --stage work"),
    "a worker of another stage": (after("UPDATE outbox.workers SET stages = '{p.other}'"), "no worker",
        "No worker serves stage work.", "outbox worker --app module:object --stage work"),
    "a limit": (lambda conn, dsn: (others(conn, 1), deployed(conn, one_stage(lambda run: None, concurrency=1)),
                conn.execute(RUNNING + " WHERE workflow_id <> (SELECT id FROM outbox.workflow_states WHERE entity_id = 'a')")), "limit",
        "The limit of stage work holds it: 1 of 1 run.", "wait, or raise the limit: *"),
    "a rate": (after("UPDATE outbox.limits SET next_at = now() + interval '1 minute'", rate="1/minute"), "limit",
        "The limit of stage work holds it: the next of 0.016* a second may start at * UTC.", "wait, or raise the limit: *"),
    "others": (lambda conn, dsn: others(conn, 3), "behind",
        "It is behind 3 others for stage work; none has left it in the last ten minutes.", "look at the log of `outbox worker`"),
    "others that go": (lambda conn, dsn: (others(conn, 3), conn.execute(
                "INSERT INTO outbox.status_flow SELECT date_trunc('minute', now()) - interval '1 minute', 'p', 'NEW', 0, 15")), "behind",
        "It is behind 3 others for stage work; 1.5 a minute have left it, so this takes about 2 min.", "wait, or start more workers: *"),
    "nobody is before it": (after(), "next", "It is next for stage work, when a worker is free.", "wait, or start more workers: *"),
    "no job": (after("DELETE FROM outbox.jobs"), "no job", "Stage work takes it, but it has no job.", "outbox retry a --pipeline p"),
    "a dead end": (dead_end, "dead end", "No change leads out of MOVED, and it is not final.", "deploy a pipeline that allows one"),
    "a dead end, but a cancellation": (dead_end_but_a_cancellation, "dead end",
        "No change leads out of MOVED, and it is not final.", "deploy a pipeline that allows one"),
    "a status that is not deployed": (after("DELETE FROM outbox.routes WHERE status = 'NEW'"), "unknown status",
        "It is in NEW, which the deployed pipeline does not know.", "deploy code that knows it: *"),
    "a pipeline that is not deployed": (after("ALTER TABLE outbox.pipelines DISABLE TRIGGER USER", "DELETE FROM outbox.pipelines"), "not deployed",
        'Pipeline "p" is not deployed.', "deploy it: *"),
    "its end": (lambda conn, dsn: (ready(conn), conn.execute("UPDATE outbox.workflow_states SET current_status = 'DONE'")), "finished",
        "It has ended in DONE, at * UTC.", ""),
}  # fmt: skip


def matches(said: str, pattern: str) -> bool:
    """Tells whether a text is the pattern, in which * stands for anything."""
    first, *parts = pattern.split("*")
    if not said.startswith(first):
        return False
    place = len(first)
    for part in parts:
        place = said.find(part, place) + len(part) if part in said[place:] else -1
        if place < 0:
            return False
    return pattern.endswith("*") or place == len(said)


@pytest.mark.parametrize("case", CASES)
def test_each_cause_is_named_by_one_sentence_with_one_remedy(conn: Conn, dsn: str, case: str) -> None:
    plant, cause, sentence, remedy = CASES[case]
    plant(conn, dsn)
    pipeline = value(conn, "SELECT pipeline FROM outbox.workflow_states WHERE entity_id = 'a'")
    found = why(conn, pipeline, "a")
    assert found.cause == cause, found
    assert matches(found.sentence, sentence), found.sentence
    assert matches(found.remedy or "", remedy), found.remedy
    assert "\n" not in str(found)


HOLDS = {
    "its row": ("SELECT FROM outbox.workflow_states FOR UPDATE", "Its row is held by session"),
    "its row, changed": ("UPDATE outbox.workflow_states SET metadata = '{}'", "Its row is held by session"),
    "its row, in a savepoint": ("SAVEPOINT s; UPDATE outbox.workflow_states SET metadata = '{}'", "Its row is held by session"),
    "its job": ("SELECT FROM outbox.jobs FOR UPDATE", "Its job is held by session"),
    "its table": ("LOCK outbox.workflow_states IN SHARE MODE", "The table outbox.workflow_states is held by session"),
}  # fmt: skip


@pytest.mark.parametrize("held", HOLDS)
def test_a_session_that_holds_its_row_is_named_with_how_to_end_it(
    conn: Conn, connect: Callable[..., Conn], held: str
) -> None:
    statement, sentence = HOLDS[held]
    ready(conn)
    assert why(conn, "p", "a").cause == "next"
    other = connect(autocommit=False)
    other.execute(statement.encode())
    pid = other.info.backend_pid
    found = why(conn, "p", "a")
    assert (found.cause, found.remedy) == (
        "held", f"commit that transaction, or end it: SELECT pg_terminate_backend({pid})",
    )  # fmt: skip
    assert found.sentence.startswith(f"{sentence} {pid} (")
    assert "idle in transaction, open since" in found.sentence
    other.rollback()
    assert why(conn, "p", "a").cause == "next"


def test_a_prepared_transaction_that_holds_its_row_is_named(conn: Conn, connect: Callable[..., Conn]) -> None:
    ready(conn)
    other = connect()
    other.execute("BEGIN")
    other.execute("SELECT FROM outbox.workflow_states FOR UPDATE")
    other.execute("PREPARE TRANSACTION 'forgotten'")
    found = why(conn, "p", "a")
    other.execute("ROLLBACK PREPARED 'forgotten'")
    assert found.sentence.startswith('Its row is held by the prepared transaction "forgotten", since ')
    assert found.remedy == "COMMIT PREPARED 'forgotten', or ROLLBACK PREPARED 'forgotten'"


def test_it_says_why_in_both_colours_and_refuses_what_is_not_there(conn: Conn, dsn: str) -> None:
    posts = deployed(conn, make_posts())
    posts.submit(conn, "it's; rm -rf", Post(content="risky"))
    drain(posts, dsn)

    async def ask() -> Why:
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            return await why(other, posts, "it's; rm -rf")

    found = why(conn, posts, "it's; rm -rf")
    assert asyncio.run(ask()) == found
    assert found.remedy == """outbox set-status 'it'"'"'s; rm -rf' STATUS --pipeline posts"""
    with pytest.raises(NoWorkflow):
        why(conn, posts, "b")
    with pytest.raises(outbox.InvalidInput):
        why(conn, posts, "")


@pytest.mark.parametrize(
    ("entity", "name", "words"),
    [
        ("a", "paid", ["signal", "a", "paid", "--pipeline", "orders"]),
        ("a", "it's paid; $(rm -rf /) | `x`", ["signal", "a", "it's paid; $(rm -rf /) | `x`", "--pipeline", "orders"]),
        ("-a", "paid", ["signal", "--pipeline", "orders", "--", "-a", "paid"]),
        ("a b", "-x", ["signal", "--pipeline", "orders", "--", "a b", "-x"]),
        ("a\n'b\\", "z\u200b", ["signal", "a\n'b\\", "z\u200b", "--pipeline", "orders"]),
    ],
)
def test_a_shell_reads_the_remedy_as_it_is_meant(
    conn: Conn, dsn: str, entity: str, name: str, words: list[str]
) -> None:
    pipeline = deployed(conn, orders(WaitForSignal(name, to="PAID")))
    pipeline.submit(conn, entity, Order())
    drain(pipeline, dsn)
    remedy = why(conn, pipeline, entity).remedy
    shell = ["bash", "-c", f"outbox() {{ printf '%s\\0' \"$@\"; }}; {remedy}"]
    said = subprocess.run(shell, check=True, capture_output=True, text=True, env={"LC_ALL": "C.UTF-8"}).stdout
    assert said.split("\0")[:-1] == words


def test_each_option_of_a_question_is_a_word_for_a_shell_and_none_is_a_pipe(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, WaitForApproval("?", options={"yes, pay | now": "PAID", "-no": "REFUSED"}))
    found = why(conn, pipeline, "a")
    assert found.remedy == "outbox decide a OPTION --pipeline orders"
    assert found.sentence.startswith("""It waits for a person to answer "?" (-no, 'yes, pay | now'), since """)


def test_names_of_stages_with_spaces_are_quoted_in_remedies(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Any] = Pipeline("my orders", initial="NEW", final={"DONE"})
    pipeline.stage("do it", on="NEW", to="DONE")(lambda run: None)
    deployed(conn, pipeline).submit(conn, "a", {})
    assert why(conn, pipeline, "a").remedy == "outbox worker --app module:object --stage 'do it'"
    conn.execute("INSERT INTO outbox.pauses (pipeline, stage, paused_by) VALUES ('my orders', 'do it', 'sarah')")
    assert why(conn, pipeline, "a").remedy == "outbox resume 'my orders.do it'"


def test_the_first_line_of_show_says_why(conn: Conn, dsn: str, outbox: Outbox) -> None:
    waiting(conn, dsn, TIMED)
    said = outbox("show", "a")
    first = said.out.splitlines()[0]
    assert first.startswith('It waits for sarah to answer "Pay it?" (approve, reject), since ')
    assert first.endswith(" → outbox decide a OPTION --pipeline orders")
    assert outbox("show", "a", "--json").json["why"]["cause"] == "person"


def test_what_is_before_it_is_counted_up_to_a_bound(conn: Conn) -> None:
    others(conn, 1_100)
    assert why(conn, "p", "a").sentence.startswith("It is behind 1,000 others or more for stage work;")


def test_a_priority_and_a_partition_decide_who_is_before_it(conn: Conn) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to="DONE", partition="customer", priority="urgency", concurrency=1)(
        lambda run: None
    )
    people = [("o1", "x", 5), ("o2", "x", 1), ("o3", "y", 9), ("a", "x", 3)]
    deployed(conn, pipeline).submit_many(conn, [(e, {"customer": c, "urgency": u}) for e, c, u in people])
    conn.execute(WORKER, ("p.work",))
    assert why(conn, "p", "a").sentence.startswith("It is behind 1 other for stage work;")
    conn.execute(RUNNING + " WHERE workflow_id = (SELECT id FROM outbox.workflow_states WHERE entity_id = 'o2')")
    assert why(conn, "p", "a").sentence == 'The limit of stage work holds it: 1 of 1 of partition "x" run.'


def test_a_transaction_of_the_engine_is_no_cause(conn: Conn, dsn: str) -> None:
    ready(conn)
    with psycopg.connect(dsn, application_name="outbox commit") as other:
        other.execute("SELECT FROM outbox.workflow_states FOR UPDATE")
        assert why(conn, "p", "a").cause == "next"
