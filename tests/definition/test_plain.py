"""Data that is written without `$version` is of the version that the pipeline says, whoever writes it and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

import outbox
from kit.commands import Outbox
from kit.pipelines import deployed, drain, status_of, value
from kit.waits import Task
from outbox import DefinitionError, Pipeline, Run, WaitForApproval
from outbox.definition import deploy

Conn = psycopg.Connection[Any]
NEW_SHAPE, OLD_SHAPE = '{"text": "hello"}', '{"content": "hello"}'


class Old(BaseModel):
    content: str = "?"


class New(BaseModel):
    text: str


def first() -> Pipeline[Old]:
    pipeline: Pipeline[Old] = Pipeline("posts", data=Old, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to="ASKED")(lambda run: None)
    pipeline.allow("ASKED", to="DONE")
    return pipeline


def second(plain: int | None) -> Pipeline[New]:
    pipeline: Pipeline[New] = Pipeline("posts", data=New, initial="NEW", final={"DONE"}, version=2, plain=plain)
    pipeline.migrate_data(1, lambda old: {"text": old.pop("content", "unknown")})

    @pipeline.stage("work", on="NEW", to="ASKED")
    def work(run: Run[New]) -> Any:
        return WaitForApproval("?", data=run.data, options={"yes": "DONE"})

    pipeline.allow("ASKED", to="DONE")
    return pipeline


def text_of(conn: Conn, entity: str = "x") -> Any:
    """What the code of version 2 reads."""
    stored = value(conn, "SELECT metadata::text FROM outbox.workflow_states WHERE entity_id = %s", entity)
    return second(2).load(stored).text


def test_a_deploy_asks_which_version_plain_data_has(conn: Conn) -> None:
    for act in (deploy.check, deploy.deploy):
        with pytest.raises(DefinitionError, match=r"write without \$version.*plain=2.*plain=1"):
            act(conn, second(None))
    assert "data without $version has version 1 -> 2" in deploy.deploy(conn, second(2))
    assert deploy.deploy(conn, second(2)) == []
    assert deploy.deploy(conn, second(1)) == ["data without $version has version 2 -> 1"]


INSERTS = {
    "without a status": "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('posts', 'x', %s)",
    "with a status": "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata) "
    "VALUES ('posts', 'x', 'NEW', %s)",
    "the whole row": "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, version, created_at, "
    "updated_at, metadata) VALUES ('posts', 'x', 'NEW', 1, now(), now(), %s)",
    "after a submit in the same transaction": "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, "
    "metadata) VALUES ('posts', 'x', 'NEW', %s)",
}


@pytest.mark.parametrize("how", INSERTS)
@pytest.mark.parametrize(("plain", "sent"), [(2, NEW_SHAPE), (1, OLD_SHAPE)])
def test_an_insert_without_a_version_is_read_as_what_it_is(
    conn: Conn, dsn: str, how: str, plain: int, sent: str
) -> None:
    pipeline = deployed(conn, second(plain))
    with conn.transaction():
        if "submit" in how:
            pipeline.submit(conn, "before", New(text="hello"))
        conn.execute(INSERTS[how].encode(), [sent])
    assert text_of(conn) == "hello"
    drain(pipeline, dsn)
    assert text_of(conn) == "hello"
    assert value(conn, "SELECT metadata ->> '$version' FROM outbox.workflow_states WHERE entity_id = 'x'") == "2"


def test_data_that_states_its_version_keeps_it(conn: Conn) -> None:
    deployed(conn, second(2))
    conn.execute(INSERTS["with a status"].encode(), ['{"$version": 1, "content": "hello"}'])
    assert text_of(conn) == "hello"
    assert value(conn, "SELECT metadata ->> '$version' FROM outbox.workflow_states") == "1"


@pytest.mark.parametrize("plain", [1, 2])
def test_code_of_the_version_before_still_submits_what_it_knows(conn: Conn, plain: int) -> None:
    """Both releases run side by side: the old one states no version, and means its own."""
    deployed(conn, first())
    deployed(conn, second(plain))
    first().submit(conn, "x", Old(content="hello"))
    first().submit_many(conn, [("y", Old(content="hello"))])
    assert (text_of(conn), text_of(conn, "y")) == ("hello", "hello")


@pytest.mark.parametrize("code", [1, 2])
def test_children_are_of_the_version_of_the_code_that_spawns_them(conn: Conn, dsn: str, code: int) -> None:
    parents: Pipeline[Task] = Pipeline("parents", data=Task, initial="NEW", final={"DONE"})

    @parents.stage("split", on="NEW", to="DONE")
    def split(run: Run[Task]) -> None:
        if code == 1:
            run.spawn(first(), "x", Old(content="hello"))
        else:
            run.spawn(second(2), "x", New(text="hello"))

    deployed(conn, second(2))
    deployed(conn, parents).submit(conn, "p", Task())
    drain(parents, dsn)
    assert text_of(conn) == "hello"


def test_the_command_submits_plain_data_unless_an_application_reads_it(conn: Conn, dsn: str, tmp_path: Path) -> None:
    deployed(conn, second(2))
    lines = tmp_path / "x.jsonl"
    lines.write_text(json.dumps({"entity_id": "x", "metadata": json.loads(NEW_SHAPE)}))
    Outbox(dsn)("submit", "--pipeline", "posts", str(lines))
    assert text_of(conn) == "hello"


def asked(conn: Conn, dsn: str, plain: int) -> Pipeline[New]:
    pipeline = deployed(conn, second(plain))
    pipeline.submit(conn, "x", New(text="before"))
    drain(pipeline, dsn)
    assert status_of(conn, "x") == "ASKED"
    return pipeline


@pytest.mark.parametrize(("plain", "sent"), [(2, NEW_SHAPE), (1, OLD_SHAPE)])
def test_an_edit_of_a_decision_in_plain_sql_is_stamped(conn: Conn, dsn: str, plain: int, sent: str) -> None:
    asked(conn, dsn, plain)
    conn.execute("SELECT outbox.decide('posts', 'x', 'yes', edit => %s::text::jsonb)", [sent])
    assert text_of(conn) == "hello"


@pytest.mark.parametrize("code", [first(), second(2)], ids=["old code", "new code"])
def test_an_edit_of_a_decision_is_of_the_version_of_its_code(conn: Conn, dsn: str, code: Pipeline[Any]) -> None:
    asked(conn, dsn, 2)
    edit = {"content": "hello"} if code.plain is None else {"text": "hello"}
    outbox.decide(conn, code, "x", "yes", edit=edit)
    assert text_of(conn) == "hello"


@pytest.mark.parametrize(("plain", "sent"), [(2, NEW_SHAPE), (1, OLD_SHAPE)])
def test_an_update_that_replaces_the_data_is_stamped(conn: Conn, dsn: str, plain: int, sent: str) -> None:
    asked(conn, dsn, plain)
    conn.execute("UPDATE outbox.workflow_states SET metadata = %s", [sent])
    assert text_of(conn) == "hello"


def test_an_update_of_one_field_leaves_the_version_of_the_data_as_it_is(conn: Conn) -> None:
    deployed(conn, first()).submit(conn, "x", Old(content="before"))
    deployed(conn, second(2))
    conn.execute('UPDATE outbox.workflow_states SET metadata = metadata || \'{"content": "hello"}\'')
    assert text_of(conn) == "hello", "it was of version 1, and is"


def test_a_pipeline_with_one_version_or_without_upgrades_is_not_asked(conn: Conn) -> None:
    deployed(conn, first())
    conn.execute(INSERTS["with a status"].encode(), [OLD_SHAPE])
    assert value(conn, "SELECT metadata FROM outbox.workflow_states") == {"content": "hello"}
    born: Pipeline[New] = Pipeline("born", data=New, initial="NEW", version=2)
    deployed(conn, born)
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('born', 'b', %s)", [NEW_SHAPE]
    )
    assert value(conn, "SELECT metadata -> '$version' FROM outbox.workflow_states WHERE entity_id = 'b'") == 2


@pytest.mark.parametrize("plain", [0, 3, "1", True])
def test_a_plain_version_that_makes_no_sense_is_refused(plain: Any) -> None:
    with pytest.raises(DefinitionError, match="plain="):
        second(plain)


def test_plain_data_that_no_upgrade_reads_is_refused(conn: Conn) -> None:
    pipeline: Pipeline[New] = Pipeline("posts", data=New, initial="NEW", version=3, plain=1)
    pipeline.migrate_data(2, dict)
    with pytest.raises(DefinitionError, match=r"plain=1, and there is no migrate_data\(1, …\)"):
        deploy.deploy(conn, pipeline)
