"""An agent's loop in a pipeline: it asks about tool calls, and people approve, edit, deny, are late, and answer twice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

import outbox
from kit.frameworks import OPENAI, Framework, each_framework, require_approvals
from kit.pipelines import QUICK, deployed, drain, drain_all, status_of, value
from kit.waits import put_off
from outbox import Pipeline, Run, TooLate
from outbox.agents.openai import questions as of_openai
from outbox.agents.pydantic_ai import questions as of_pydantic_ai
from outbox.testing import crash_everywhere

Conn = psycopg.Connection[Any]
HOUR = timedelta(hours=1)
calls: list[Any] = []
pytestmark = each_framework


@pytest.fixture(autouse=True)
def approved_only(conn: Conn) -> Any:
    """Requires of every test that each refund was approved in the database: once, and with these arguments."""
    calls.clear()
    yield
    require_approvals(conn, calls)


def refund(cents: int, by: Any) -> str:
    calls.append((cents, by))
    return f"{cents} paid"


async def look_up(order: str) -> str:
    calls.append(order)
    return "shipped"


def supporter(of: Framework, *answers: Any) -> Any:
    return of.supporter(refund, look_up, *(answers or ([of.call("refund", "c1", cents=900)], "done")))


def cases(of: Framework, *answers: Any, **options: Any) -> Pipeline[Any]:
    return cases_of(of, supporter(of, *answers), **options)


def cases_of(of: Framework, agent: Any, **options: Any) -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline("cases", data=of.case, initial="NEW", final={"DONE", "STOPPED"})

    @of.agent_stage(  # type: ignore[untyped-decorator]
        pipeline, agent, on={"NEW", "MORE"}, to="DONE", prompt=lambda case: case.prompt, retry=QUICK, **options
    )
    async def answered(run: Run[Any], output: str) -> Any:
        return run.data.model_copy(update={"answer": output})

    pipeline.allow("WAITING_FOR_APPROVAL", to="MORE")
    return pipeline


def begun(conn: Conn, dsn: str, of: Framework, *answers: Any, **options: Any) -> Pipeline[Any]:
    """Deploys, submits "a", and runs it."""
    pipeline = deployed(conn, cases(of, *answers, **options))
    pipeline.submit(conn, "a", of.case())
    drain(pipeline, dsn)
    return pipeline


def asking(conn: Conn, dsn: str, of: Framework, *answers: Any, **options: Any) -> Pipeline[Any]:
    """Deploys, submits "a", and runs it until it asks."""
    pipeline = begun(conn, dsn, of, *answers, **options)
    assert status_of(conn, "a") == "WAITING_FOR_APPROVAL"
    return pipeline


def case(conn: Conn, pipeline: Pipeline[Any]) -> Any:
    found = pipeline.get(conn, "a")
    assert found is not None
    return found.data


def returned(conn: Conn, of: Framework, pipeline: Pipeline[Any]) -> dict[str, Any]:
    """Returns what the model was told of its calls."""
    return of.returned(case(conn, pipeline).transcript)


def test_an_agent_that_asks_nobody_ends(conn: Conn, dsn: str, of: Framework) -> None:
    pipeline = begun(conn, dsn, of, [of.call("look_up", "c1", order="7")], "it is on its way")
    found = case(conn, pipeline)
    assert (status_of(conn, "a"), found.answer, calls) == ("DONE", "it is on its way", ["7"])
    assert (found.transcript.requests, of.waits(found.transcript)) == (2, None)
    assert found.transcript.tokens > 0
    if of is OPENAI:  # its fake model counts 50 a request
        assert (found.transcript.tokens, found.transcript.agent) == (100, "support")


def test_more_calls_than_a_wait_may_ask_about_are_asked_about_after_each_other(
    conn: Conn, dsn: str, of: Framework, monkeypatch: pytest.MonkeyPatch
) -> None:
    for questions in (of_pydantic_ai, of_openai):
        assert questions.MOST_QUESTIONS == 100
        monkeypatch.setattr(questions, "MOST_QUESTIONS", 2)
    pipeline = asking(conn, dsn, of, [of.call("refund", f"c{n}", cents=n) for n in range(5)], "done")
    for number in (2, 2, 1):
        asked = outbox.approvals(conn)
        assert (len(asked), calls) == (number, [])
        for each in asked:
            outbox.approve(conn, pipeline, "a", by="eva", question=each.id)
        drain(pipeline, dsn)
    assert (status_of(conn, "a"), sorted(calls)) == ("DONE", [(n, "eva") for n in range(5)])


def test_the_transcript_may_be_a_field_of_any_name(conn: Conn, dsn: str, of: Framework) -> None:
    pipeline: Pipeline[Any] = Pipeline("cases", initial="NEW", final={"DONE"})

    @of.agent_stage(  # type: ignore[untyped-decorator]
        pipeline, supporter(of, "hello"), on="NEW", to="DONE", prompt=lambda case: "hello", transcript="data"
    )
    def answered(run: Run[Any], output: str) -> None:
        calls.append(output)

    deployed(conn, pipeline)
    pipeline.submit(conn, "a", {})
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls) == ("DONE", ["hello"])
    assert value(conn, "SELECT metadata -> 'data' ->> 'requests' FROM outbox.workflow_states") == "1"


def test_a_call_is_asked_about_and_made_when_it_is_approved(conn: Conn, dsn: str, of: Framework) -> None:
    pipeline = asking(conn, dsn, of)
    (asked,) = outbox.approvals(conn)
    assert asked.question == "support: refund"
    assert (asked.data, sorted(asked.options), asked.edits_allowed) == ({"cents": 900}, ["approve", "deny"], True)
    assert calls == []
    outbox.approve(conn, pipeline, "a", by="sarah", reason="fair")
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), case(conn, pipeline).answer, calls) == ("DONE", "done", [(900, "sarah")])
    asked_in, answered = pipeline.history(conn, "a")[1:3]
    assert asked_in.to_status == "WAITING_FOR_APPROVAL"
    assert (answered.to_status, answered.actor, answered.reason) == ("ANSWERED", "sarah", "fair")
    assert returned(conn, of, pipeline) == {"c1": "900 paid"}


def test_arguments_may_be_edited(conn: Conn, dsn: str, of: Framework) -> None:
    pipeline = asking(conn, dsn, of)
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": 500})
    drain(pipeline, dsn)
    assert calls == [(500, "sarah")]
    assert returned(conn, of, pipeline) == {"c1": "500 paid"}


@pytest.mark.parametrize("edit", [{"cents": "much"}, {"euros": 5}, [1], "all"])
def test_arguments_that_do_not_fit_are_asked_about_again(conn: Conn, dsn: str, of: Framework, edit: Any) -> None:
    pipeline = asking(conn, dsn, of)
    outbox.approve(conn, pipeline, "a", by="sarah", about=edit)
    drain(pipeline, dsn)
    (asked,) = outbox.approvals(conn)
    assert "The arguments given before don't fit: " in asked.question
    assert (asked.data, calls) == ({"cents": 900}, [])
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": 1})
    drain(pipeline, dsn)
    assert calls == [(1, "sarah")]


def test_a_denial_is_told_to_the_agent(conn: Conn, dsn: str, of: Framework) -> None:
    pipeline = asking(conn, dsn, of)
    outbox.decide(conn, pipeline, "a", "deny", by="sarah", reason="not ours")
    drain(pipeline, dsn)
    assert (calls, status_of(conn, "a"), returned(conn, of, pipeline)) == ([], "DONE", {"c1": "not ours"})


def test_a_deadline_is_a_denial(conn: Conn, dsn: str, of: Framework) -> None:
    pipeline = asking(conn, dsn, of, deadline=HOUR)
    put_off(conn, 7200)
    drain_all(conn, dsn, pipeline)
    assert (calls, status_of(conn, "a")) == ([], "DONE")
    assert returned(conn, of, pipeline) == {"c1": "Nobody has decided in time."}


@pytest.mark.parametrize(
    ("status", "prompts"), [("ANSWERED", ["refund me"]), ("MORE", ["refund me", "refund me"])], ids=["answered", "more"]
)
def test_a_change_by_hand_is_no_approval(
    conn: Conn, dsn: str, of: Framework, status: str, prompts: list[str]
) -> None:  # fmt: skip
    pipeline = asking(conn, dsn, of)
    pipeline.move(conn, "a", status, by="tom")
    drain(pipeline, dsn)
    assert (calls, status_of(conn, "a")) == ([], "DONE")
    assert "c1" in returned(conn, of, pipeline)
    assert of.prompts(case(conn, pipeline).transcript) == prompts


def test_of_two_decisions_on_one_call_one_counts(conn: Conn, dsn: str, of: Framework) -> None:
    pipeline = asking(conn, dsn, of)
    outbox.approve(conn, pipeline, "a", by="sarah")
    with pytest.raises(TooLate, match="sarah"):
        outbox.decide(conn, pipeline, "a", "deny", by="tom")
    drain(pipeline, dsn)
    assert calls == [(900, "sarah")]


def test_each_of_several_calls_is_decided_by_itself(conn: Conn, dsn: str, of: Framework) -> None:
    several = [of.call("refund", f"c{n}", cents=n) for n in range(4)]
    pipeline = asking(conn, dsn, of, [*several, of.call("look_up", "l", order="7")], "done")
    assert calls == ["7"], "what needs no approval is made at once"
    asked = {each.data["cents"]: each for each in outbox.approvals(conn)}
    outbox.approve(conn, pipeline, "a", by="ann", question=asked[0].id)
    outbox.decide(conn, pipeline, "a", "deny", by="ben", question=asked[1].id, reason="no")
    outbox.approve(conn, pipeline, "a", by="eva", question=asked[2].id, about={"cents": "x"})
    assert status_of(conn, "a") == "WAITING_FOR_APPROVAL"
    outbox.approve(conn, pipeline, "a", by="eva", question=asked[3].id, about={"cents": 33})
    drain(pipeline, dsn)
    (again,) = outbox.approvals(conn)
    assert (again.data, calls) == ({"cents": 2}, ["7"]), "nothing is called before all are decided"
    outbox.approve(conn, pipeline, "a", by="eva", about={"cents": 22})
    drain(pipeline, dsn)
    assert sorted(calls[1:]) == [(0, "ann"), (22, "eva"), (33, "eva")]
    assert returned(conn, of, pipeline)["c1"] == "no"


def test_plain_json_may_be_the_data(conn: Conn, dsn: str, of: Framework) -> None:
    pipeline: Pipeline[dict[str, Any]] = Pipeline("cases", initial="NEW", final={"DONE"})

    @of.agent_stage(  # type: ignore[untyped-decorator]
        pipeline, supporter(of), on="NEW", to="DONE", prompt=lambda case: case["prompt"], retry=QUICK
    )
    async def answered(run: Run[dict[str, Any]], output: str) -> None:
        calls.append(output)

    deployed(conn, pipeline)
    pipeline.submit(conn, "a", {"prompt": "hello"})
    drain(pipeline, dsn)
    outbox.approve(conn, pipeline, "a", by="sarah")
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls) == ("DONE", [(900, "sarah"), "done"])


def test_a_conversation_outlives_a_deploy_of_an_agent_with_other_tools(conn: Conn, dsn: str, of: Framework) -> None:
    asking(conn, dsn, of)
    agent = supporter(of)
    of.add_tool(agent, lambda: 1)
    pipeline = deployed(conn, cases_of(of, agent))
    assert len(outbox.approvals(conn)) == 1
    outbox.approve(conn, pipeline, "a", by="sarah")
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls) == ("DONE", [(900, "sarah")])


def test_a_crash_at_any_step_loses_nothing_and_repeats_at_most_one_call(conn: Conn, dsn: str, of: Framework) -> None:
    several = [of.call("look_up", "l1", order="7"), of.call("look_up", "l2", order="8")]
    pipeline = deployed(conn, cases(of, [*several, of.call("refund", "c1", cents=5)], "done"))

    def scenario(drain: Any) -> None:
        calls.clear()
        with psycopg.connect(dsn, autocommit=True) as person:
            pipeline.submit(person, "a", of.case())
            drain()
            outbox.approve(person, pipeline, "a", by="sarah")
            drain()
            assert status_of(person, "a") == "DONE"
            assert returned(person, of, pipeline) == {"l1": "shipped", "l2": "shipped", "c1": "5 paid"}
        assert {*calls} == {"7", "8", (5, "sarah")}
        assert len(calls) <= 5, "of two calls at once, both may be under way"

    assert len(crash_everywhere(scenario, pipeline, dsn)) > 10
    calls.clear()


def endless(of: Framework) -> list[Any]:
    return [[of.call("look_up", f"c{n}", order=str(n))] for n in range(99)]


def test_a_model_that_never_stops_is_ended_with_the_reason(conn: Conn, dsn: str, of: Framework) -> None:
    begun(conn, dsn, of, *endless(of), budget=of.budget(requests=12))
    told = "the agent has spent its budget: 12 requests in this attempt, of 12"
    assert value(conn, "SELECT error FROM outbox.dead_jobs") == told
    assert calls == [str(n) for n in range(12)]


def test_a_model_that_never_stops_goes_where_the_stage_says(conn: Conn, dsn: str, of: Framework) -> None:
    pipeline = begun(conn, dsn, of, *endless(of), budget=of.budget(workflow_tokens=200), on_budget="STOPPED")
    found = case(conn, pipeline).transcript
    assert status_of(conn, "a") == "STOPPED"
    assert found.stopped == f"the agent has spent its budget: {found.tokens} tokens in this workflow, of 200"
    assert found.tokens == 200 or of is not OPENAI
    assert len(found.messages) == 2 * found.requests + 1
