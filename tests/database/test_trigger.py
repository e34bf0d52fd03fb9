"""The trigger as orchestrator: history, job and messages follow any change of a status, in the same transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, status_of
from kit.servers import DEADLINE, wait_for

Conn = psycopg.Connection[Any]

START = "INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', %s)"
MOVE = "UPDATE outbox.workflow_states SET current_status = %s WHERE entity_id = %s"


def rows(conn: Conn, statement: str, *params: Any) -> list[Any]:
    return conn.execute(statement, params).fetchall()


def history(conn: Conn, entity: str) -> list[Any]:
    return rows(
        conn,
        "SELECT from_status, to_status, c.version FROM outbox.state_changes c JOIN outbox.workflow_states w "
        "ON w.id = c.workflow_id WHERE entity_id = %s ORDER BY c.version",
        entity,
    )


def job(conn: Conn, entity: str) -> list[Any]:
    return rows(
        conn,
        "SELECT j.stage, j.attempt, j.owner FROM outbox.jobs j JOIN outbox.workflow_states w "
        "ON w.id = j.workflow_id WHERE entity_id = %s",
        entity,
    )


@pytest.fixture
def posts(conn: Conn) -> Conn:
    deployed(conn)
    return conn


def test_plain_insert_starts_a_workflow_in_the_initial_status(posts: Conn) -> None:
    posts.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('posts', 'a', '{\"n\": 1}')"
    )
    assert rows(posts, "SELECT current_status, version, metadata FROM outbox.workflow_states") == [
        ("RECEIVED", 1, {"n": 1})
    ]
    assert history(posts, "a") == [(None, "RECEIVED", 1)]
    assert job(posts, "a") == [("enrich", 0, None)]


def test_plain_update_moves_a_workflow_and_makes_the_next_job(posts: Conn) -> None:
    posts.execute(START, ["a"])
    posts.execute(MOVE, ["ENRICHED", "a"])
    assert history(posts, "a") == [(None, "RECEIVED", 1), ("RECEIVED", "ENRICHED", 2)]
    assert job(posts, "a") == [("decide", 0, None)]
    posts.execute(MOVE, ["WAITING_FOR_REVIEW", "a"])
    assert job(posts, "a") == [], "nobody takes this status: it waits for a person"


def test_a_change_back_to_the_status_it_has_is_no_change(posts: Conn) -> None:
    posts.execute(START, ["a"])
    before = rows(posts, "SELECT version, updated_at, id FROM outbox.workflow_states")
    posts.execute(MOVE, ["RECEIVED", "a"])
    assert rows(posts, "SELECT version, updated_at, id FROM outbox.workflow_states") == before
    assert len(history(posts, "a")) == 1
    assert job(posts, "a") == [("enrich", 0, None)]


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        ("COMPLETED", "OB001", ['pipeline "posts"', 'entity "a"', 'from "RECEIVED"', 'to "COMPLETED"']),
        ("NOWHERE", "OB003", ['pipeline "posts"', 'entity "a"', 'from "RECEIVED"', 'to "NOWHERE"']),
    ],
)
def test_an_illegal_change_is_refused_by_name_and_changes_nothing(
    posts: Conn, status: str, state: str, words: list[str]
) -> None:
    posts.execute(START, ["a"])
    with pytest.raises(psycopg.Error) as refused:
        posts.execute(MOVE, [status, "a"])
    assert refused.value.sqlstate == state
    assert all(word in str(refused.value) for word in words), refused.value
    assert status_of(posts, "a") == "RECEIVED"
    assert len(history(posts, "a")) == 1


def test_one_illegal_change_in_a_bulk_update_refuses_all_of_it(posts: Conn) -> None:
    for entity in "abc":
        posts.execute(START, [entity])
    posts.execute(MOVE, ["ENRICHED", "b"])
    with pytest.raises(psycopg.Error, match=r'entity "b", from "ENRICHED" to "REJECTED"|entity "[ac]"'):
        posts.execute("UPDATE outbox.workflow_states SET current_status = 'REJECTED'")
    assert [status_of(posts, entity) for entity in "abc"] == ["RECEIVED", "ENRICHED", "RECEIVED"]


def test_unknown_pipeline_and_unknown_status_are_refused_at_insert(posts: Conn) -> None:
    with pytest.raises(psycopg.Error, match='unknown pipeline "nope": entity "a"') as refused:
        posts.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('nope', 'a')")
    assert refused.value.sqlstate == "OB002"
    with pytest.raises(psycopg.Error, match='unknown pipeline "nope"'):
        posts.execute(
            "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status) VALUES ('nope', 'a', 'X')"
        )
    with pytest.raises(psycopg.Error, match='unknown status: pipeline "posts", entity "a", from null to "X"'):
        posts.execute(
            "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status) VALUES ('posts', 'a', 'X')"
        )
    assert rows(posts, "SELECT count(*) FROM outbox.workflow_states") == [(0,)]


def test_identity_of_a_workflow_is_fixed_and_its_version_moves_by_itself(posts: Conn) -> None:
    posts.execute(START, ["a"])
    for change in ("entity_id = 'b'", "pipeline = 'other'", "id = gen_random_uuid()"):
        with pytest.raises(psycopg.Error, match="can't be changed"):
            posts.execute(f"UPDATE outbox.workflow_states SET {change}".encode())
    posts.execute("UPDATE outbox.workflow_states SET version = 77, updated_at = 'epoch', metadata = '{\"x\": 1}'")
    assert rows(posts, "SELECT version, updated_at > '2000-01-01' FROM outbox.workflow_states") == [(2, True)]
    posts.execute("UPDATE outbox.workflow_states SET version = 3")
    assert rows(posts, "SELECT version FROM outbox.workflow_states") == [(2,)], "nothing changed but the attempt to"


def test_a_hundred_thousand_rows_move_in_one_statement(posts: Conn) -> None:
    posts.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id) SELECT 'posts', 'e' || n FROM generate_series(1, 100000) n"
    )
    # The plan that the session has cached by now was made for one row.
    posts.execute(START, ["a"])
    posts.execute(MOVE, ["ENRICHED", "a"])
    posts.execute("UPDATE outbox.workflow_states SET current_status = 'ENRICHED' WHERE current_status = 'RECEIVED'")
    assert rows(posts, "SELECT count(*) FROM outbox.state_changes WHERE from_status = 'RECEIVED'") == [(100001,)]
    assert rows(posts, "SELECT stage, count(*) FROM outbox.jobs GROUP BY 1") == [("decide", 100001)]
    assert rows(posts, "SELECT workflows, ready FROM outbox.overview WHERE status = 'ENRICHED'") == [(100001, 100001)]


def test_history_tells_who_and_why(posts: Conn) -> None:
    posts.execute(START, ["a"])
    with posts.transaction():
        posts.execute("SET LOCAL outbox.actor = 'sarah'")
        posts.execute("SET LOCAL outbox.reason = 'looks fine'")
        posts.execute(MOVE, ["ENRICHED", "a"])
    posts.execute(MOVE, ["APPROVED", "a"])
    assert rows(posts, "SELECT actor, reason, stage FROM outbox.state_changes ORDER BY id") == [
        ("outbox_owner", None, None),
        ("sarah", "looks fine", None),
        ("outbox_owner", None, None),
    ]


def test_history_is_append_only(posts: Conn) -> None:
    posts.execute(START, ["a"])
    for statement in (
        "DELETE FROM outbox.state_changes",
        "UPDATE outbox.state_changes SET actor = 'nobody'",
        "TRUNCATE outbox.state_changes",
        "TRUNCATE outbox.workflow_states",
    ):
        with pytest.raises(psycopg.Error, match="append-only") as refused:
            posts.execute(statement.encode())
        assert refused.value.sqlstate == "OB005"
    assert len(history(posts, "a")) == 1


def test_a_role_that_may_only_change_status_cannot_bypass_history(posts: Conn, admin_dsn: str, server: Any) -> None:
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS clerk")
        admin.execute("CREATE ROLE clerk")
        admin.execute("GRANT USAGE ON SCHEMA outbox TO clerk")
        admin.execute("GRANT SELECT, INSERT, UPDATE ON outbox.workflow_states TO clerk")
        admin.execute("SET ROLE clerk")
        admin.execute(START, ["a"])
        admin.execute(MOVE, ["ENRICHED", "a"])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            admin.execute("INSERT INTO outbox.state_changes (workflow_id, to_status, version, actor) "
                          "SELECT id, 'X', 9, 'me' FROM outbox.workflow_states")  # fmt: skip
        admin.execute("RESET ROLE")
        assert rows(admin, "SELECT actor FROM outbox.state_changes ORDER BY id") == [("clerk",), ("clerk",)]
        admin.execute("DROP OWNED BY clerk")
        admin.execute("DROP ROLE clerk")


def test_everything_of_a_change_commits_together_or_not_at_all(posts: Conn, connect: Callable[..., Conn]) -> None:
    posts.execute(START, ["a"])
    other = connect(autocommit=False)
    other.execute(MOVE, ["ENRICHED", "a"])
    other.execute("INSERT INTO outbox.messages (topic, payload) VALUES ('t', '{}')")
    assert job(posts, "a") == [("enrich", 0, None)], "not committed: not seen"
    other.rollback()
    assert (status_of(posts, "a"), job(posts, "a"), len(history(posts, "a"))) == (
        "RECEIVED",
        [("enrich", 0, None)],
        1,
    )
    assert rows(posts, "SELECT count(*) FROM outbox.messages") == [(0,)]


def test_a_deleted_workflow_takes_its_job_along_and_leaves_its_history(posts: Conn) -> None:
    posts.execute(START, ["a"])
    posts.execute("DELETE FROM outbox.workflow_states")
    assert rows(posts, "SELECT count(*) FROM outbox.jobs") == [(0,)]
    assert rows(posts, "SELECT count(*) FROM outbox.state_changes") == [(1,)]
    assert rows(posts, "SELECT sum(workflows) FROM outbox.overview") == [(0,)]


def test_a_change_by_hand_answers_a_dead_job(posts: Conn) -> None:
    posts.execute(START, ["a"])
    posts.execute(
        "WITH gone AS (DELETE FROM outbox.jobs RETURNING *) INSERT INTO outbox.dead_jobs "
        "(workflow_id, pipeline, entity_id, stage, status, entered, attempts, error) "
        "SELECT workflow_id, pipeline, 'a', stage, status, entered, 8, 'boom' FROM gone"
    )
    assert rows(posts, "SELECT ready, dead FROM outbox.overview WHERE status = 'RECEIVED'") == [(0, 1)]
    posts.execute(MOVE, ["ENRICHED", "a"])
    assert rows(posts, "SELECT count(*) FROM outbox.dead_jobs") == [(0,)]
    assert job(posts, "a") == [("decide", 0, None)]


def test_two_changes_at_once_are_one_after_the_other(posts: Conn, connect: Callable[..., Conn]) -> None:
    posts.execute(START, ["a"])
    posts.execute(MOVE, ["ENRICHED", "a"])
    posts.execute(MOVE, ["WAITING_FOR_REVIEW", "a"])
    first, second = connect(autocommit=False), connect(autocommit=False)
    first.execute(MOVE, ["APPROVED", "a"])
    import threading

    refused: list[BaseException] = []

    def reject() -> None:
        try:
            second.execute(MOVE, ["REJECTED", "a"])
        except psycopg.Error as error:
            refused.append(error)

    thread = threading.Thread(target=reject)
    thread.start()
    wait_for(
        lambda: rows(posts, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = %s",
                     second.info.backend_pid) == [(1,)],
        what="the second change waits for the first",
    )  # fmt: skip
    first.commit()
    thread.join(DEADLINE)
    assert len(refused) == 1
    assert 'from "APPROVED" to "REJECTED"' in str(refused[0])
    assert history(posts, "a")[-1] == ("WAITING_FOR_REVIEW", "APPROVED", 4)


def test_session_settings_of_the_user_do_not_matter(posts: Conn, connect: Callable[..., Conn]) -> None:
    odd = connect()
    for setting in (
        "DateStyle = 'SQL, DMY'", "TimeZone = 'Asia/Kathmandu'", "search_path = ''", "IntervalStyle = 'sql_standard'",
        "default_transaction_isolation = 'serializable'", "standard_conforming_strings = on", "bytea_output = 'escape'",
    ):  # fmt: skip
        odd.execute(f"SET {setting}".encode())
    odd.execute(START, ["a"])
    odd.execute(MOVE, ["ENRICHED", "a"])
    assert job(odd, "a") == [("decide", 0, None)]
