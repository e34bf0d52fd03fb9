"""The research agent of the examples: by a real worker, and with a crash after each of its steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from kit import forked
from kit.pipelines import deployed, status_of, value
from kit.servers import Process, wait_for
from outbox.testing import Drained, crash_everywhere

EXAMPLES = str(Path(__file__).parents[2] / "examples")
ANSWER = " ".join(f"https://{place}.example/1 says that they sleep." for place in ("news", "papers", "forum"))


def test_a_worker_answers_with_what_parallel_tools_have_found(
    conn: psycopg.Connection[Any], spawn: Callable[..., Process], monkeypatch: Any
) -> None:
    forked.imports("outbox.agents.pydantic_ai")
    monkeypatch.syspath_prepend(EXAMPLES)
    from research_agent.pipeline import Question, questions

    deployed(conn, questions)
    questions.submit(conn, "cats", Question(topic="cats"))
    spawn("worker", "--app", "research_agent.pipeline:questions", env={"PYTHONPATH": EXAMPLES})
    wait_for(lambda: status_of(conn, "cats") == "ANSWERED", what="the question is answered")
    assert value(conn, "SELECT metadata ->> 'answer' FROM outbox.workflow_states") == ANSWER


def test_after_a_crash_anywhere_it_goes_on(conn: psycopg.Connection[Any], dsn: str, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from research_agent.pipeline import Question, questions

    deployed(conn, questions)

    def scenario(drain: Callable[[], Drained]) -> None:
        questions.submit(conn, "cats", Question(topic="cats"))
        drain()
        found = questions.get(conn, "cats")
        assert found is not None
        assert (found.status, found.data.answer) == ("ANSWERED", ANSWER)

    steps = crash_everywhere(scenario, questions, dsn)
    assert len(steps) > 20, steps  # three requests and six calls, each with what is kept of it
