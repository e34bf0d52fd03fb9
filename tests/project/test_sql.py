"""docs/sql.md: what it says is typed here, in its order, and what it lists is there."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, drain, status_of, value

Conn = psycopg.Connection[Any]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")


def example() -> Any:
    spec = importlib.util.spec_from_file_location("sql_pipeline", ROOT / "examples" / "node" / "pipeline.py")
    assert spec and spec.loader  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.posts


def test_what_the_page_says_works_in_its_order(conn: Conn, dsn: str) -> None:
    posts = deployed(conn, example())
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        if language == "sql":
            conn.execute(text.encode())
            drain(posts, dsn)
    assert (status_of(conn, "post_7"), status_of(conn, "post_8")) == ("PUBLISHED", "REJECTED")
    history = "SELECT actor, reason FROM outbox.state_changes AS c JOIN outbox.workflow_states AS w ON w.id = workflow_id WHERE entity_id = %s AND from_status = 'WAITING'"
    assert conn.execute(history, ["post_7"]).fetchall() == [("sarah", "harmless")]
    assert conn.execute(history, ["post_8"]).fetchall() == [("sarah", "a duplicate")]
    told = [json.loads(notice.payload) for notice in conn.notifies(timeout=0)]
    (printed,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert set(json.loads(printed)) == {"pipeline", "entity_id", "status", "version"}
    assert told == []  # LISTEN came last


def test_the_refusal_is_as_printed(conn: Conn) -> None:
    deployed(conn, example())
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("SELECT outbox.submit('posts', 'post_9', '{\"content\": 7}')")
    printed = re.search(r"^```text\nERROR:  (.*)\nDETAIL: (.*)\n```$", PAGE, re.MULTILINE)
    assert printed
    assert caught.value.diag.message_primary == printed[1]
    assert json.loads(caught.value.diag.message_detail or "") == json.loads(printed[2])


def test_every_function_that_it_lists_is_there_with_its_arguments(conn: Conn) -> None:
    for name, arguments in re.findall(r"`outbox\.(\w+)\((pipeline[^)]*)\)`", PAGE):
        names = [each for each in arguments.split(", ") if each != "…"]
        found = conn.execute(
            "SELECT p.proargnames FROM pg_proc AS p WHERE p.pronamespace = 'outbox'::regnamespace AND p.proname = %s",
            [name],
        ).fetchall()
        assert any(there[: len(names)] == names for (there,) in found), name


def test_the_sqlstates_go_as_far_as_it_says(conn: Conn) -> None:
    last = max(re.findall(r"`(OB\d{3})`", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")))
    assert f"`OB001` to `{last}`" in PAGE
    assert value(conn, "SELECT 1") == 1
