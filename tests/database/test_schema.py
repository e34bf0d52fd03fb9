"""What the schema consists of: each part is described, each text is known to later releases, and sql/schema.sql is the whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import psycopg
import pytest

from kit.servers import PostgresServer
from outbox.database import schema
from tools.schema import dump, unrecorded

Conn = psycopg.Connection[Any]

# What design.md, README and docs name for users to read, write or call.
PUBLIC = {
    "approval_votes", "approvals", "blob", "blob_parts", "blob_uses", "blobs", "checkpoints", "children", "dead_jobs", "delegations", "delivery_attempts",
    "effect_state", "effects", "inbox", "jobs", "legal_changes", "limits",
    "messages", "overview", "parked_deliveries", "parked_messages", "pauses", "pipelines", "routes", "schedules",
    "schema_migrations", "signals", "stages", "state_changes", "waiting", "workers", "workflow_states", "workflows",
    "actor", "cancel", "commit_waits", "decide", "delegate", "delegation_end", "erase", "error_kind", "errors", "find", "flow",
    "inbox_forget", "inbox_oldest", "is_worker", "may_speak", "retry", "shown", "uuid7", "uuid7_time", "why",
    "act_as", "actions", "move", "pause", "resume", "signal", "signal_names", "signal_unknown", "submit",
}  # fmt: skip
# By the contract, these columns are public.
COLUMNS = {
    "workflow_states": "id pipeline entity_id current_status metadata version created_at updated_at",
    "state_changes": "id workflow_id from_status to_status version actor login reason stage attempt at",
    "messages": "id message_id topic key payload headers workflow_id created_at",
    "inbox": "consumer message_id received_at",
    "jobs": "workflow_id pipeline stage attempt owner run_at",
    "dead_jobs": "workflow_id pipeline entity_id stage attempts error died_at",
    "children": "child_id parent_id",
    "signals": "pipeline entity_id name payload signal_id",
    "pauses": "pipeline stage paused_by login reason",
    "limits": "concurrency rate partition_concurrency partition_rate",
    "overview": "pipeline status stage workflows ready scheduled running dead oldest_waiting",
    "waiting": "workflow_id pipeline entity_id status kind waits_for since until ended_by details",
}

# Children of a ring and sequences of identity columns are parts of their tables.
COMMENTS = """
SELECT c.relname, obj_description(c.oid, 'pg_class') FROM pg_class AS c
WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S') AND NOT c.relispartition
  AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'i' AND c.relkind = 'S')
UNION ALL
SELECT p.proname, obj_description(p.oid, 'pg_proc') FROM pg_proc AS p WHERE p.pronamespace = 'outbox'::regnamespace
"""
COLUMN_COMMENTS = """
SELECT c.relname, a.attname, col_description(c.oid, a.attnum) FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = 'outbox'::regnamespace AND c.relname = ANY (%s) AND a.attnum > 0 AND NOT a.attisdropped
"""


def test_schema_sql_is_what_the_migrations_make(make_server: Callable[[str], PostgresServer]) -> None:
    stored = files("outbox.sql").joinpath("schema.sql").read_text(encoding="utf-8")
    assert dump(make_server("18")) == stored, "run: make schema"


def test_every_text_that_can_be_replaced_is_known_to_later_releases_and_none_comes_back() -> None:
    assert unrecorded() == [], "run: make schema"
    for name, hashes in schema.history().items():
        assert len(set(hashes)) == len(hashes), f"{name} has a text that it had before: change a comment in it"


def test_everything_is_described_and_what_is_not_for_users_says_so(conn: Conn) -> None:
    found = dict(conn.execute(COMMENTS.encode()).fetchall())
    assert [name for name, comment in found.items() if not comment] == []
    assert {name for name, comment in found.items() if not comment.startswith("Internal: ")} == PUBLIC


def test_every_column_of_a_public_table_is_described(conn: Conn) -> None:
    found = {
        (table, column): comment for table, column, comment in conn.execute(COLUMN_COMMENTS.encode(), [sorted(PUBLIC)])
    }
    assert [name for name, comment in found.items() if not comment] == []
    for table, columns in COLUMNS.items():
        for column in columns.split():
            assert not found[table, column].startswith("Internal"), (table, column)


def test_the_schema_can_be_made_in_a_database_of_any_encoding() -> None:
    for migration in schema.all_migrations():
        assert migration.sql.isascii(), migration.name


def test_each_table_and_index_is_written_once() -> None:
    steps = "".join(step.sql for (step,) in schema.transactions()[1:-1])
    made = re.findall(r"^CREATE (?:TABLE|UNIQUE INDEX|INDEX|SEQUENCE) (\S+)", steps, re.MULTILINE)
    replaced = re.findall(r"^DROP INDEX outbox\.(\S+);", steps, re.MULTILINE)
    again = [name for name in replaced if made.count(name) > 1]
    assert len(made) - len(again) == len(set(made)) > 50
    first = "".join(step.sql for (step,) in schema.transactions()[1:7])
    assert not re.search(r"\b(ALTER (TABLE|INDEX)|DROP)\b", first), "until a release has shipped them"


def test_every_function_is_valid(conn: Conn) -> None:
    """It is created with its body unchecked, since functions call each other in any order."""
    validated = conn.execute(
        "SELECT count(CASE l.lanname WHEN 'sql' THEN fmgr_sql_validator(p.oid) ELSE plpgsql_validator(p.oid) END), count(*) "
        "FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang WHERE p.pronamespace = 'outbox'::regnamespace"
    ).fetchone()
    assert validated is not None
    assert validated[1] > 30


@pytest.mark.parametrize(
    "name", [migration.name for migration in schema.all_migrations() if "functions/" in migration.name]
)
def test_no_function_is_longer_than_90_lines_but_the_orchestrator(name: str) -> None:
    (text,) = (migration.sql for migration in schema.all_migrations() if migration.name == name)
    for function, body in re.findall(
        r"^CREATE OR REPLACE FUNCTION outbox\.(\w+)(.*?^\$\$;)", text, re.MULTILINE | re.DOTALL
    ):
        assert body.count("\n") <= 90 or function == "workflows_changed", function
