"""The demo end to end, with real processes and a real kill; and that its books notice what is wrong."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from outbox.demo.actors import REVIEWER, Reviewer
from outbox.demo.books import Check, check_books
from outbox.demo.demo import conclude, run_demo
from outbox.demo.pipeline import Enrichment, Post, posts
from outbox.demo.processes import undisturbed
from outbox.demo.sources import FileSource, bundled
from pytest_postgresql.executors import NoopExecutor
from rich.console import Console

from kit import forked
from kit.commands import Outbox
from kit.databases import OWNER, clone
from kit.pipelines import deployed, drain, status_of, value
from kit.servers import DEADLINE, PostgresServer, Process, wait_for
from outbox import Pipeline, WaitForApproval
from outbox.definition import deploy

CONTENTS = [
    "I love this #bakery, what a wonderful day!",
    "The bus leaves at nine.",
    "I hate this. It is a shame, and I am angry.",
    "Disgusting, horrible, awful criminals. I hate you, you are the worst thieves and I am furious!",
    "🎂",
    "Quotes ' \" and %s and {} and <b>markup</b> [red]stay[/red] text",
] * 3


class Played(NamedTuple):
    """A run of the demo that has ended."""

    dsn: str
    code: int
    text: str
    run: str


@pytest.fixture(scope="module")
def demo_dsn(server: PostgresServer, template: NoopExecutor) -> Iterator[str]:
    """A database for one run of the demo, for a role that may make the demo's own schema."""
    with clone(template, "demo") as dsn:
        with server.admin() as admin:
            admin.execute(f"GRANT CREATE ON DATABASE demo TO {OWNER}")
        yield dsn


@pytest.fixture(scope="module")
def played(demo_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Played:
    path: Path = tmp_path_factory.mktemp("demo") / "posts.jsonl"
    path.write_text("".join(json.dumps({"content": content}) + "\n" for content in CONTENTS))
    console = Console(file=StringIO(), width=120)
    with forked.programs():
        code = run_demo(demo_dsn, FileSource(path), workers=2, console=console)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    with psycopg.connect(demo_dsn) as conn:
        row = conn.execute("SELECT min(split_part(entity_id, '/', 1)) FROM outbox.workflow_states").fetchone()
    assert row is not None, text
    return Played(demo_dsn, code, text, f"{row[0]}/")


@pytest.fixture
def conn(played: Played) -> Iterator[psycopg.Connection[Any]]:
    """A connection whose work is rolled back in the end: each test spoils the books for itself."""
    with psycopg.connect(played.dsn) as conn:
        yield conn
        conn.rollback()


def test_the_demo_survives_outage_and_kill_and_its_books_are_right(played: Played) -> None:
    assert played.code == 0, played.text
    assert "✘" not in played.text
    for words in ("killed (SIGKILL)", "the service is down", "the service is up again", "all posts have ended"):
        assert words in played.text


def test_every_post_has_ended_and_the_reviewer_decided(played: Played, conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute("SELECT current_status, count(*) FROM outbox.workflow_states GROUP BY 1").fetchall()
    assert dict(rows) == {"COMPLETED": 15, "REJECTED": 3}
    rows = conn.execute("SELECT actor, count(*) FROM outbox.state_changes WHERE to_status = 'REJECTED' GROUP BY 1")
    assert rows.fetchall() == [("sarah", 3)]


def test_the_reviewer_leaves_the_questions_for_a_while_to_the_person_at_the_page(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        patient, other = Reviewer(conn, "demo-x/", patience=DEADLINE), Reviewer(conn, "demo-x/")
        asked = Pipeline("posts", data=Post, initial="NEW", final={"APPROVED", "REJECTED"})
        angry = Post(author="a", content="b", enrichment=Enrichment(sentiment=-1, hashtags=[]))
        asked.stage("ask", on="NEW", to="WAITING")(
            lambda run: WaitForApproval("?", status="WAITING", assignee=REVIEWER)
        )
        asked.allow("WAITING", to={"APPROVED", "REJECTED"})
        deployed(conn, asked).submit(conn, "demo-x/1", angry)
        drain(asked, dsn)
        patient.step()
        assert (patient.waits, status_of(conn, "demo-x/1")) == (True, "WAITING")
        other.step()
        assert (other.waits, status_of(conn, "demo-x/1")) == (False, "REJECTED")


def test_messages_go_out_to_rabbitmq_and_a_killed_consumer_doubles_nothing(
    dsn: str, admin_dsn: str, amqp: str, tmp_path: Path
) -> None:
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA demo_crm AUTHORIZATION outbox_owner")
        admin.execute("SET ROLE outbox_owner")
        admin.execute(files("outbox.demo").joinpath("crm.sql").read_text().split(";", 1)[1])
    path = tmp_path / "posts.jsonl"
    path.write_text("".join(json.dumps({"content": content}) + "\n" for content in CONTENTS))
    console = Console(file=StringIO(), width=120)
    with forked.programs():
        code = run_demo(dsn, FileSource(path), console=console, amqp_url=amqp)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert code == 0, text
    assert "between its commit and its acknowledgement" in text
    with psycopg.connect(dsn, autocommit=True) as conn:
        run = value(conn, "SELECT min(split_part(entity_id, '/', 1)) || '/' FROM outbox.workflow_states")
        effects = "SELECT count(*), count(DISTINCT entity_id) FROM demo_crm.enriched"
        assert conn.execute(effects).fetchone() == (len(CONTENTS), len(CONTENTS))
        assert value(conn, "SELECT count(*) FROM outbox.relays") == 0, "nothing is kept for a relay that has gone"
        for spoil in (
            "INSERT INTO demo_crm.enriched SELECT * FROM demo_crm.enriched LIMIT 1",
            "DELETE FROM demo_crm.enriched",
        ):
            conn.execute(spoil.encode())
            assert not all(check.right for check in check_books(conn, run, 0, "shipping.sql"))


def test_out_to_rabbitmq_needs_to_know_where_it_is(outbox: Outbox) -> None:
    assert "make demo RELAY=1" in outbox.fails("demo", "--relay")


SPOILED = {
    "one CRM row": [
        "INSERT INTO demo_crm.posts SELECT * FROM demo_crm.posts LIMIT 1",
        "DELETE FROM demo_crm.posts WHERE ctid = (SELECT min(ctid) FROM demo_crm.posts)",
    ],
    "one history row": [
        "INSERT INTO outbox.state_changes (workflow_id, from_status, to_status, version, actor)"
        " SELECT workflow_id, from_status, to_status, version + 100, actor FROM outbox.state_changes"
        " WHERE from_status = 'ENRICHED' LIMIT 1",
        "SET LOCAL outbox.retention = 'on'; DELETE FROM outbox.state_changes WHERE from_status = 'ENRICHED'",
        "SET LOCAL outbox.retention = 'on'; DELETE FROM outbox.state_changes WHERE to_status = 'COMPLETED'",
    ],
    "one message": [
        "DELETE FROM outbox.messages",
        "INSERT INTO outbox.messages (topic, key, workflow_id)"
        " SELECT topic, key, workflow_id FROM outbox.messages LIMIT 1",
    ],
    "no job is left": [
        "INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered)"
        " SELECT id, pipeline, 'act', 'APPROVED', 1 FROM outbox.workflow_states LIMIT 1",
    ],
    "is in a final status": [
        "INSERT INTO outbox.workflow_states (pipeline, entity_id)"
        " SELECT pipeline, entity_id || '-stray' FROM outbox.workflow_states LIMIT 1",
    ],
    "names the person": [
        "INSERT INTO outbox.state_changes (workflow_id, from_status, to_status, version, actor)"
        " SELECT workflow_id, 'WAITING_FOR_REVIEW', 'APPROVED', version + 100, 'nobody'"
        " FROM outbox.state_changes LIMIT 1",
    ],
}


@pytest.mark.parametrize(
    ("promise", "spoil"), [(promise, spoil) for promise, spoils in SPOILED.items() for spoil in spoils]
)
def test_books_that_were_spoiled_are_found_and_exit_with_1(
    played: Played, conn: psycopg.Connection[Any], promise: str, spoil: Any
) -> None:
    conn.execute(spoil)
    checks = check_books(conn, played.run, len(CONTENTS))
    (check,) = [check for check in checks if promise in check.promise]
    assert not check.right
    assert conclude(Console(file=StringIO()), checks) == 1


def test_a_lost_post_is_found(played: Played, conn: psycopg.Connection[Any]) -> None:
    lost = check_books(conn, played.run, len(CONTENTS) + 1)[0]
    assert lost.broken == [f"posts: {len(CONTENTS)} of {len(CONTENTS) + 1}"]


def test_books_of_one_run_do_not_see_another(played: Played, conn: psycopg.Connection[Any]) -> None:
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', 'demo-other/1')")
    assert conclude(Console(file=StringIO()), check_books(conn, played.run, len(CONTENTS))) == 0


def test_a_check_names_some_of_what_is_broken_and_counts_the_rest() -> None:
    assert str(Check("all is well", ["a", "b", "c", "d", "e"])) == "✘ all is well\n    a; b; c … and 2 more"


OBJECTIONABLE = {
    "posts that the demo did not submit: mine": "INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', 'mine')",
    "another demo is running": "SET application_name = 'outbox demo'",
    "would claim its jobs: far:1": "INSERT INTO outbox.workers (name, stages, lease) VALUES ('far:1', '{posts.act}', '1 hour')",
}


@pytest.mark.parametrize("objection", OBJECTIONABLE)
def test_the_demo_keeps_away_from_what_is_not_its_own(dsn: str, objection: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        deploy.deploy(conn, posts)
        conn.execute(OBJECTIONABLE[objection])
        before = conn.execute("SELECT count(*) FROM outbox.state_changes").fetchone()
        console = Console(file=StringIO(), width=200)
        with forked.programs():
            assert run_demo(dsn, bundled(limit=3), console=console) == 1
        assert isinstance(console.file, StringIO)
        assert objection in console.file.getvalue()
        assert conn.execute("SELECT count(*) FROM outbox.state_changes").fetchone() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_demo_that_is_ended_from_outside_ends_its_processes(
    admin_dsn: str, spawn: Callable[..., Process], number: signal.Signals, code: int
) -> None:
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA demo_crm AUTHORIZATION outbox_owner")
        admin.execute("SET ROLE outbox_owner")
        admin.execute(files("outbox.demo").joinpath("crm.sql").read_text().split(";", 1)[1])
        demo = spawn("demo", "--limit", "40")
        names = wait_for(lambda: names_of_workers(admin, 2) or not demo.running, what="the demo's workers")
        assert demo.running, demo.text()
        demo.send(number)
        assert demo.wait() == code
        wait_for(lambda: not any(is_alive(name) for name in names), what="the end of the demo's workers")
        sessions = (
            "SELECT datname, application_name, state, query FROM pg_stat_activity WHERE application_name LIKE 'outbox%'"
        )
        wait_for(lambda: not admin.execute(sessions).fetchall(), what="the end of the demo's sessions")


def names_of_workers(conn: psycopg.Connection[Any], number: int) -> list[str]:
    """The names of the workers if there are so many."""
    rows = conn.execute("SELECT name FROM outbox.workers").fetchall()
    return [name for (name,) in rows] if len(rows) == number else []


def is_alive(worker: str) -> bool:
    try:
        os.kill(int(worker.rsplit(":", 1)[1]), 0)
    except ProcessLookupError:
        return False
    return True


def test_posts_that_cannot_be_read_start_nothing(tmp_path: Path) -> None:
    path = tmp_path / "posts.csv"
    path.write_text("id,text\n1,x\n")
    console = Console(file=StringIO(), width=200)
    assert run_demo("host=127.0.0.1 port=1", FileSource(path), console=console) == 1
    assert isinstance(console.file, StringIO)
    assert "no column 'content'" in console.file.getvalue()


@pytest.mark.parametrize("dsn", ["postgresql://me:canary@127.0.0.1:1/x", "host=127.0.0.1 password=canary broken"])
def test_a_database_that_is_not_there_is_named_without_its_password(dsn: str) -> None:
    console = Console(file=StringIO(), width=200)
    assert run_demo(dsn, bundled(limit=1), console=console) == 1
    assert isinstance(console.file, StringIO)
    assert "✘" in console.file.getvalue()
    assert "canary" not in console.file.getvalue()


def test_a_signal_that_comes_while_a_process_is_started_waits_until_it_is_known() -> None:
    came: list[int] = []
    former = signal.signal(signal.SIGHUP, lambda number, _: came.append(number))
    try:
        with undisturbed():
            signal.raise_signal(signal.SIGHUP)
            assert came == []
        assert came == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, former)
