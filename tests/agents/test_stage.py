"""An agent's loop in a pipeline: it asks about tool calls, and people approve, edit, deny, are late, and answer twice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, CallDeferred, ModelMessage, RunContext
from pydantic_ai.models.test import TestModel

import outbox
from kit.models import Answer, call, returned, script
from kit.pipelines import QUICK, deployed, drain, drain_all, status_of, value
from kit.waits import put_off
from outbox import DefinitionError, Go, Pipeline, Run, TooLate
from outbox.agents.pydantic_ai import Budget, OutboxDurability, Transcript, agent_stage
from outbox.testing import crash_everywhere

Conn = psycopg.Connection[Any]
HOUR = timedelta(hours=1)
calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


class Case(BaseModel):
    prompt: str = "refund me"
    answer: str | None = None
    transcript: Transcript = Transcript()


REFUND = [call("refund", "c1", cents=900)]


def supporter(*answers: Answer, output_type: Any = str) -> Agent[None, Any]:
    agent: Agent[None, Any] = Agent(
        script(*(answers or (REFUND, "done"))), name="support", output_type=output_type,
        capabilities=[OutboxDurability()],
    )  # fmt: skip

    @agent.tool(requires_approval=True)
    def refund(ctx: RunContext[None], cents: int) -> str:
        calls.append((cents, (ctx.tool_call_metadata or {}).get("by")))
        return f"{cents} paid"

    @agent.tool_plain
    def look_up(order: str) -> str:
        calls.append(order)
        return "shipped"

    @agent.tool_plain
    def carrier(parcel: str) -> str:
        raise CallDeferred

    return agent


def cases(agent: Agent[None, Any], data: Any = Case, **options: Any) -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline("cases", data=data, initial="NEW", final={"DONE", "STOPPED"})

    @agent_stage(
        pipeline, agent, on={"NEW", "MORE"}, to="DONE", prompt=lambda case: case.prompt, retry=QUICK, **options
    )
    async def answered(run: Run[Case], output: str) -> Case:
        return run.data.model_copy(update={"answer": output})

    pipeline.allow("WAITING_FOR_APPROVAL", to="MORE")
    return pipeline


def asking(conn: Conn, dsn: str, agent: Agent[None, Any] | None = None, **options: Any) -> Pipeline[Any]:
    """Deploys, submits "a", and runs it until it asks."""
    pipeline = deployed(conn, cases(agent or supporter(), **options))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "WAITING_FOR_APPROVAL"
    return pipeline


def case(conn: Conn, pipeline: Pipeline[Any]) -> Case:
    found = pipeline.get(conn, "a")
    assert found is not None
    return found.data  # type: ignore[no-any-return]


def history(conn: Conn, pipeline: Pipeline[Any]) -> list[ModelMessage]:
    return case(conn, pipeline).transcript.history()


def test_an_agent_that_asks_nobody_ends(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, cases(supporter([call("look_up", "c1", order="7")], "it is on its way")))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    found = case(conn, pipeline)
    assert (status_of(conn, "a"), found.answer, calls) == ("DONE", "it is on its way", ["7"])
    assert (found.transcript.requests, found.transcript.asked) == (2, None)
    assert found.transcript.tokens > 0


def test_a_call_is_asked_about_and_made_when_it_is_approved(conn: Conn, dsn: str) -> None:
    pipeline = asking(conn, dsn)
    (asked,) = outbox.approvals(conn)
    assert asked.question == "support: refund"
    assert (asked.data, sorted(asked.options), asked.edits_allowed) == ({"cents": 900}, ["approve", "deny"], True)
    assert calls == []
    outbox.approve(conn, pipeline, "a", by="sarah", reason="fair")
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), case(conn, pipeline).answer, calls) == ("DONE", "done", [(900, "sarah")])
    assert [(each.to_status, each.actor) for each in pipeline.history(conn, "a")][1:3] == [
        ("WAITING_FOR_APPROVAL", pipeline.history(conn, "a")[1].actor), ("ANSWERED", "sarah"),
    ]  # fmt: skip


def test_arguments_may_be_edited(conn: Conn, dsn: str) -> None:
    pipeline = asking(conn, dsn)
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": 500})
    drain(pipeline, dsn)
    assert calls == [(500, "sarah")]
    assert returned(history(conn, pipeline)) == {"c1": "500 paid"}


@pytest.mark.parametrize("edit", [{"cents": "much"}, {"euros": 5}, [1], "all"])
def test_arguments_that_do_not_fit_are_asked_about_again(conn: Conn, dsn: str, edit: Any) -> None:
    pipeline = asking(conn, dsn)
    outbox.approve(conn, pipeline, "a", by="sarah", about=edit)
    drain(pipeline, dsn)
    (asked,) = outbox.approvals(conn)
    assert "The arguments given before don't fit: " in asked.question
    assert (asked.data, calls) == ({"cents": 900}, [])
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": 1})
    drain(pipeline, dsn)
    assert calls == [(1, "sarah")]


def test_a_denial_is_told_to_the_agent(conn: Conn, dsn: str) -> None:
    pipeline = asking(conn, dsn)
    outbox.decide(conn, pipeline, "a", "deny", by="sarah", reason="not ours")
    drain(pipeline, dsn)
    assert (calls, status_of(conn, "a")) == ([], "DONE")
    assert returned(history(conn, pipeline)) == {"c1": "not ours"}


def test_a_deadline_is_a_denial(conn: Conn, dsn: str) -> None:
    pipeline = asking(conn, dsn, deadline=HOUR)
    put_off(conn, 7200)
    drain_all(conn, dsn, pipeline)
    assert (calls, status_of(conn, "a")) == ([], "DONE")
    assert returned(history(conn, pipeline)) == {"c1": "Nobody has decided in time."}


@pytest.mark.parametrize("status", ["ANSWERED", "MORE"])
def test_a_change_by_hand_is_no_approval(conn: Conn, dsn: str, status: str) -> None:
    pipeline = asking(conn, dsn)
    pipeline.move(conn, "a", status, by="tom")
    drain(pipeline, dsn)
    assert (calls, status_of(conn, "a")) == ([], "DONE")
    assert "c1" in returned(history(conn, pipeline))


def test_of_two_decisions_on_one_call_one_counts(conn: Conn, dsn: str) -> None:
    pipeline = asking(conn, dsn)
    outbox.approve(conn, pipeline, "a", by="sarah")
    with pytest.raises(TooLate, match="sarah"):
        outbox.decide(conn, pipeline, "a", "deny", by="tom")
    drain(pipeline, dsn)
    assert calls == [(900, "sarah")]


def test_each_of_several_calls_is_decided_by_itself(conn: Conn, dsn: str) -> None:
    several = [call("refund", f"c{n}", cents=n) for n in range(4)]
    pipeline = asking(conn, dsn, supporter([*several, call("look_up", "l", order="7")], "done"))
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
    assert returned(history(conn, pipeline))["c1"] == "no"


def test_a_call_that_is_made_elsewhere_has_its_result_from_people(conn: Conn, dsn: str) -> None:
    pipeline = asking(
        conn, dsn, supporter([call("carrier", "c1", parcel="p"), call("carrier", "c2", parcel="q")], "done")
    )
    one, two = sorted(outbox.approvals(conn), key=lambda each: str(each.data))
    assert one.data == {"arguments": {"parcel": "p"}, "result": None}
    result = {"arguments": {"parcel": "p"}, "result": {"at": "home"}}
    outbox.decide(conn, pipeline, "a", "answer", by="tom", question=one.id, about=result)
    outbox.decide(conn, pipeline, "a", "deny", by="tom", question=two.id, reason="lost")
    drain(pipeline, dsn)
    assert returned(history(conn, pipeline)) == {"c1": {"at": "home"}, "c2": "lost"}


def test_questions_have_the_parameters_that_the_application_gives(conn: Conn, dsn: str) -> None:
    asking(conn, dsn, ask=lambda call: {"assignee": "sarah", "question": f"Pay {call.args_as_dict()['cents']}?"})
    (asked,) = outbox.approvals(conn, assignee="sarah")
    assert asked.question == "Pay 900?"


def test_a_user_writes_again_and_the_conversation_goes_on(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Case] = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})
    agent = supporter("what is it?", "goodbye")

    @agent_stage(pipeline, agent, on={"NEW", "WRITTEN"}, to={"ANSWER_GIVEN", "DONE"}, prompt=lambda case: case.prompt)
    def answered(run: Run[Case], output: str) -> Go[Case]:
        return Go("DONE" if output == "goodbye" else "ANSWER_GIVEN")

    pipeline.allow("ANSWER_GIVEN", to="WRITTEN")
    deployed(conn, pipeline)
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "ANSWER_GIVEN"
    conn.execute(
        "UPDATE outbox.workflow_states SET current_status = 'WRITTEN', metadata = metadata || '{\"prompt\": \"more\"}'"
    )
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "DONE"
    prompts = [
        part.content for each in history(conn, pipeline) for part in each.parts if part.part_kind == "user-prompt"
    ]
    assert prompts == ["refund me", "more"]


def test_plain_json_may_be_the_data(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[dict[str, Any]] = Pipeline("cases", initial="NEW", final={"DONE"})

    @agent_stage(pipeline, supporter(), on="NEW", to="DONE", prompt=lambda case: case["prompt"], retry=QUICK)
    async def answered(run: Run[dict[str, Any]], output: str) -> None:
        calls.append(output)

    deployed(conn, pipeline)
    pipeline.submit(conn, "a", {"prompt": "hello"})
    drain(pipeline, dsn)
    outbox.approve(conn, pipeline, "a", by="sarah")
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls) == ("DONE", [(900, "sarah"), "done"])


def test_a_conversation_outlives_a_deploy_of_an_agent_with_other_tools(conn: Conn, dsn: str) -> None:
    asking(conn, dsn)
    agent = supporter()
    agent.tool_plain(lambda: 1, name="new")
    pipeline = deployed(conn, cases(agent))
    assert len(outbox.approvals(conn)) == 1
    outbox.approve(conn, pipeline, "a", by="sarah")
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls) == ("DONE", [(900, "sarah")])


def test_a_crash_at_any_step_loses_nothing_and_repeats_at_most_one_call(conn: Conn, dsn: str) -> None:
    several = [call("look_up", "l1", order="7"), call("look_up", "l2", order="8"), call("refund", "c1", cents=5)]
    pipeline = deployed(conn, cases(supporter(several, "done")))

    def scenario(drain: Any) -> None:
        calls.clear()
        with psycopg.connect(dsn, autocommit=True) as person:
            pipeline.submit(person, "a", Case())
            drain()
            outbox.approve(person, pipeline, "a", by="sarah")
            drain()
            assert status_of(person, "a") == "DONE"
            assert returned(history(person, pipeline)) == {"l1": "shipped", "l2": "shipped", "c1": "5 paid"}
        assert {*calls} == {"7", "8", (5, "sarah")}
        assert len(calls) <= 5, "of two calls at once, both may be under way"

    assert len(crash_everywhere(scenario, pipeline, dsn)) > 10


def test_a_definition_that_can_not_work_is_refused() -> None:
    pipeline: Pipeline[Any] = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})
    with pytest.raises(DefinitionError, match="OutboxDurability"):
        agent_stage(pipeline, Agent(TestModel(), name="x"), on="NEW", to="DONE", prompt=lambda case: "")
    with pytest.raises(DefinitionError, match="Case has no field 'talk'"):
        agent_stage(pipeline, supporter(), on="NEW", to="DONE", prompt=lambda case: "", transcript="talk")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"on": []}, "on= is empty"),
        ({"to": []}, "to= is empty"),
        ({"answered": "NEW"}, "answered='NEW' must be a status of its own"),
        ({"waiting": "NEW"}, "waiting='NEW' must be a status in which people answer"),
        ({"on_budget": "NEW"}, "'NEW', where the workflow is stopped"),
        ({"deadline": 5}, "deadline"),
        ({"budget": 5}, "budget=5 is not a Budget"),
        ({"prompt": "help"}, "prompt='help' is not a function"),
        ({"ask": {"assignee": "sarah"}}, "is not a function"),
    ],
)
def test_a_stage_that_would_fail_when_it_runs_is_refused_before(wrong: dict[str, Any], told: str) -> None:
    pipeline: Pipeline[Any] = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})
    given: dict[str, Any] = {"on": "NEW", "to": "DONE", "prompt": lambda case: "", **wrong}
    with pytest.raises(DefinitionError, match=f"stage support: .*{told}"):
        agent_stage(pipeline, supporter(), **given)
    assert pipeline.stages == {}


def test_a_model_that_never_stops_is_ended_with_the_reason(conn: Conn, dsn: str) -> None:
    endless = [[call("look_up", f"c{n}", order=str(n))] for n in range(99)]
    pipeline = deployed(conn, cases(supporter(*endless), budget=Budget(requests=3)))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert value(conn, "SELECT error FROM outbox.dead_jobs") == (
        "the agent has spent its budget: 3 requests in this attempt, of 3"
    )
    assert calls == ["0", "1", "2"]


def test_without_a_budget_the_limit_of_the_framework_ends_it_at_once(conn: Conn, dsn: str) -> None:
    endless = [[call("look_up", f"c{n}", order=str(n))] for n in range(99)]
    pipeline = deployed(conn, cases(supporter(*endless)))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert "request_limit of 50" in value(conn, "SELECT error FROM outbox.dead_jobs WHERE attempts = 1")
    assert len(calls) == 50


def test_a_model_that_never_stops_goes_where_the_stage_says(conn: Conn, dsn: str) -> None:
    endless = [[call("look_up", f"c{n}", order=str(n))] for n in range(99)]
    pipeline = deployed(conn, cases(supporter(*endless), budget=Budget(workflow_tokens=200), on_budget="STOPPED"))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    found = case(conn, pipeline).transcript
    assert status_of(conn, "a") == "STOPPED"
    assert found.stopped == f"the agent has spent its budget: {found.tokens} tokens in this workflow, of 200"
    assert len(found.history()) == 2 * found.requests + 1
