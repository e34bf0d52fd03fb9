"""docs/blobs.md and docs/erase.md: what they say is typed here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import psycopg

from kit.commands import Outbox
from kit.pipelines import deployed, drain, make_posts, value
from kit.waits import trail

Conn = psycopg.Connection[Any]
DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> dict[str, str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def test_what_the_page_on_large_contents_says_works(conn: Conn, dsn: str) -> None:
    found: dict[str, Any] = {"__name__": "page"}
    typed = blocks("blobs.md")
    exec(compile(typed["python"], "blobs.md", "exec", dont_inherit=True), found)
    cases = deployed(conn, found["cases"])
    cases.submit(conn, "a", found["Case"](prompt="Is it large?"))
    drain(cases, dsn)
    conn.execute(
        "UPDATE outbox.workflow_states SET current_status = 'NEW', metadata = metadata || '{\"prompt\": \"And now?\"}'"
    )
    drain(cases, dsn)
    history = "user: Is it large?\nuser: And now?\n"
    assert conn.execute(typed["sql"].encode()).fetchall() == [("a", str(len(history)), history)]


def test_what_the_page_on_erasing_says_works(conn: Conn, dsn: str, outbox: Outbox) -> None:
    posts = deployed(conn, make_posts())
    typed = blocks("erase.md")
    posts.submit(conn, "post_7", {"content": "risky"})
    drain(posts, dsn)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'REJECTED'")
    command = shlex.split(typed["sh"])[1:]
    assert "is erased" in outbox(*command).out
    found: dict[str, Any] = {"posts": posts, "conn": conn}
    exec(typed["python"], found)
    assert found["erased"].status == "REJECTED"
    assert value(conn, typed["sql"])["entity_id"] == "post_7"
    assert trail(conn, "post_7")[-3:] == [("REJECTED", "sarah", "erased: request 311")] * 3
