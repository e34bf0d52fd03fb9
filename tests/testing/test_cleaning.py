"""What is deleted of a test's database, what stays, and which database is none of a test's."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, make_posts, value
from kit.shop import stock
from outbox import OutboxError
from outbox.testing import clean, drain
from outbox.testing.cleaning import KEPT, SQL

Conn = psycopg.Connection[Any]
TABLES = """
SELECT c.relname FROM pg_class AS c
WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1
"""


def rows(conn: Conn) -> dict[str, int]:
    tables = [name for (name,) in conn.execute(TABLES).fetchall()]
    return {name: value(conn, f"SELECT count(*) FROM outbox.{name}") for name in tables}


def test_all_is_gone_but_what_was_deployed(shop: Conn, dsn: str) -> None:
    shop.execute("INSERT INTO outbox.pauses (pipeline, stage) VALUES ('posts', 'enrich')")
    shop.execute("INSERT INTO outbox.inbox (consumer, message_id) VALUES ('crm', outbox.uuid7())")
    shop.execute("INSERT INTO outbox.messages (topic) VALUES ('t')")
    before = rows(shop)
    assert clean(shop) == before["workflow_states"] > 0
    left = {name: count for name, count in rows(shop).items() if count}
    assert left.keys() <= KEPT
    assert left == {name: count for name, count in before.items() if name in KEPT and count}
    stock(shop, dsn)
    assert rows(shop)["workflow_states"] == before["workflow_states"]


def test_every_table_is_emptied_or_kept(conn: Conn) -> None:
    emptied = set(re.findall(r"DELETE FROM outbox\.(\w+)", b" ".join(SQL.values()).decode()))
    assert emptied | KEPT == set(rows(conn)), (
        "name a new table in sql/queries/cleaning.sql or outbox/testing/cleaning.py"
    )


def test_it_is_part_of_the_caller_s_transaction(conn: Conn) -> None:
    posts = deployed(conn, make_posts())
    posts.submit(conn, "a", Post())
    with conn.transaction():
        assert clean(conn) == 1
        with pytest.raises(psycopg.Error), conn.transaction():
            conn.execute("DELETE FROM outbox.state_changes")
        raise psycopg.Rollback
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 1


def test_a_worker_of_another_process_keeps_it_from_being_emptied(conn: Conn, dsn: str) -> None:
    posts = deployed(conn, make_posts())
    posts.submit(conn, "a", Post())
    conn.execute("INSERT INTO outbox.workers (name, stages, lease) VALUES ('host:1', '{}', '30 s')")
    with pytest.raises(OutboxError, match="host:1"):
        clean(conn)
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 1
    conn.execute("UPDATE outbox.workers SET beat_at = now() - interval '1 hour'")
    assert clean(conn) == 1
    drain(posts, dsn)


def test_only_a_test_s_database_is_emptied(conn: Conn, admin_dsn: str, dsn: str) -> None:
    name = conn.info.dbname
    with pytest.raises(OutboxError, match=f'this is the database "{name}", not "shop"'):
        clean(conn, database="shop")
    assert clean(conn, database=name) == 0
    conn.close()
    other = name.replace("test", "shop")
    with psycopg.connect(admin_dsn.replace(f"/{name}", "/postgres"), autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} RENAME TO {other}".encode())
        try:
            with psycopg.connect(dsn.replace(f"/{name}", f"/{other}")) as renamed:
                with pytest.raises(OutboxError, match=f"clean\\(conn, database='{other}'\\)"):
                    clean(renamed)
                assert clean(renamed, database=other) == 0
        finally:
            admin.execute(f"ALTER DATABASE {other} RENAME TO {name}".encode())


def test_an_async_connection(conn: Conn, dsn: str) -> None:
    deployed(conn, make_posts()).submit(conn, "a", Post())

    async def test() -> int:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            return await clean(other)

    assert asyncio.run(test()) == 1
    assert value(conn, "SELECT count(*) FROM outbox.state_changes") == 0
