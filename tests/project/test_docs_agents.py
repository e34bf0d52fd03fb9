"""docs/agents.md: what it says of the OpenAI Agents SDK is run here, with a model that needs no network."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

import outbox
from kit.openai_models import Script, call
from kit.pipelines import deployed, drain, status_of

Conn = psycopg.Connection[Any]
PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## I have an agent in the OpenAI Agents SDK")[2]


def test_what_the_page_on_agents_says_of_the_openai_agents_sdk_works(
    conn: Conn, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = {"__name__": "page"}
    for typed in re.findall(r"^```python\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE):
        exec(compile(typed, "agents.md", "exec", dont_inherit=True), found)
    found["agent"].model = Script([call("search", "c1", query="ducks")], "quack")
    assert asyncio.run(found["ask"]("What do ducks say?")) == "quack"
    assert capsys.readouterr().out == "quack", "word by word"
    found["support"].model = Script([call("refund", "c1", order="7", cents=5)], "done")
    questions, cases = deployed(conn, found["questions"]), deployed(conn, found["cases"])
    questions.submit(conn, "q", found["Question"](text="What do ducks say?"))
    cases.submit(conn, "c", found["Case"](message="Refund me"))
    drain([questions, cases], dsn)
    asked = questions.get(conn, "q")
    assert asked is not None
    assert asked.data.answer == "quack"
    (question,) = outbox.approvals(conn, assignee="sarah")
    assert (question.question, question.data) == ("support: refund", {"order": "7", "cents": 5})
    outbox.approve(conn, cases, "c", by="sarah")
    drain(cases, dsn)
    assert status_of(conn, "c") == "DONE"
