"""What only the loop of an agent of Pydantic AI has: calls that are made elsewhere, and its own parameters."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, CallDeferred, ModelMessage
from pydantic_ai.models.test import TestModel

import outbox
from kit.models import Answer, call, returned, script
from kit.pipelines import QUICK, deployed, drain, status_of, value
from outbox import DefinitionError, Go, Pipeline, Run
from outbox.agents.pydantic_ai import OutboxDurability, Transcript, agent_stage

Conn = psycopg.Connection[Any]


class Case(BaseModel):
    prompt: str = "refund me"
    answer: str | None = None
    transcript: Transcript = Transcript()


REFUND = [call("refund", "c1", cents=900)]


def supporter(*answers: Answer) -> Agent[None, Any]:
    model = script(*(answers or (REFUND, "done")))
    agent: Agent[None, Any] = Agent(model, name="support", capabilities=[OutboxDurability()])

    @agent.tool_plain(requires_approval=True)
    def refund(cents: int) -> str:
        return f"{cents} paid"

    @agent.tool_plain
    def carrier(parcel: str) -> str:
        raise CallDeferred

    return agent


def cases(agent: Agent[None, Any], **options: Any) -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})

    @agent_stage(pipeline, agent, on="NEW", to="DONE", prompt=lambda case: case.prompt, retry=QUICK, **options)
    async def answered(run: Run[Case], output: str) -> Case:
        return run.data.model_copy(update={"answer": output})

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


def test_without_a_budget_the_limit_of_the_framework_ends_it_at_once(conn: Conn, dsn: str) -> None:
    endless = [[call("look_up", f"c{n}", order=str(n))] for n in range(99)]
    agent, orders = supporter(*endless), list[str]()

    @agent.tool_plain
    def look_up(order: str) -> str:
        orders.append(order)
        return "sent"

    pipeline = deployed(conn, cases(agent))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert "request_limit of 50" in value(conn, "SELECT error FROM outbox.dead_jobs WHERE attempts = 1")
    assert len(orders) == 50
