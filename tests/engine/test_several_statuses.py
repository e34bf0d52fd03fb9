"""One handler for several statuses: an agent's loop is one stage."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, value
from outbox import Backoff, Go, Pipeline, Run, WaitForApproval, decide

Conn = psycopg.Connection[Any]


@pytest.mark.parametrize("running", [None, "WORKING"])
def test_a_question_and_its_answer_are_handled_by_one_stage(conn: Conn, dsn: str, running: str | None) -> None:
    agent: Pipeline[Post] = Pipeline("agent", data=Post, initial="NEW", final={"DONE"})
    seen: list[str] = []

    @agent.stage("run", on={"NEW", "ANSWERED"}, to={"ASKED", "DONE"}, running=running)
    async def run(run: Run[Post]) -> Any:
        seen.append(run.data.content)
        if run.data.content == "answered":
            return Go("DONE", run.data)
        return WaitForApproval("Send it?", Post(content="answered"), options={"yes": "ANSWERED"}, status="ASKED")

    agent.allow("ASKED", to="ANSWERED")
    deployed(conn, agent)
    agent.submit(conn, "e", Post(content="new"))
    drain(agent, dsn)
    assert value(conn, "SELECT current_status FROM outbox.workflow_states") == "ASKED"
    assert decide(conn, agent, "e", "yes", by="sarah") == "ANSWERED"
    drain(agent, dsn)
    assert seen == ["new", "answered"]
    assert value(conn, "SELECT current_status FROM outbox.workflow_states") == "DONE"


def test_a_handler_may_move_between_its_own_statuses_but_not_to_where_it_is(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"C"})
    seen: list[str] = []

    @pipeline.stage("work", on=["A", "B"], to={"A", "B", "C"}, retry=Backoff(attempts=1))
    async def work(run: Run[Post]) -> Go[Post]:
        seen.append(run.status)
        return Go(run.data.content if len(seen) == 1 else "B" if len(seen) == 2 else "C")

    deployed(conn, pipeline)
    pipeline.submit(conn, "moves", Post(content="B"))
    drain(pipeline, dsn)
    assert seen[0:2] == ["A", "B"]
    error = value(conn, "SELECT error FROM outbox.dead_jobs")
    assert "stage p.work may not go from B to 'B', only to A, C" in error
