"""What only the loop of the OpenAI Agents SDK has: handoffs, agents in tools, its context, and its own RunState."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from typing import Any

import psycopg
import pytest
from agents import (
    Agent,
    RunContextWrapper,
    ToolInputGuardrailData,
    function_tool,
    input_guardrail,
    tool_input_guardrail,
    tool_namespace,
    tool_output_guardrail,
)
from agents.guardrail import GuardrailFunctionOutput
from agents.tool_guardrails import ToolGuardrailFunctionOutput
from openai.types.responses import ResponseOutputMessage, ResponseOutputRefusal
from psycopg.types.json import Jsonb
from pydantic import BaseModel

import outbox
from kit.frameworks import require_approvals
from kit.openai_models import Answer, Script, call, returned
from kit.pipelines import QUICK, deployed, drain, drain_all, status_of, value
from outbox import DefinitionError, Go, Pipeline, Run
from outbox.agents.openai import Transcript, agent_stage, decision, tool_policy
from outbox.testing import crash_everywhere

Conn = psycopg.Connection[Any]
calls: list[Any] = []


@pytest.fixture(autouse=True)
def approved_only(conn: Conn) -> Any:
    """Requires of every test that each refund was approved in the database: once, and with these arguments."""
    calls.clear()
    yield
    require_approvals(conn, calls)


class Case(BaseModel):
    prompt: str = "refund me"
    answer: str | None = None
    transcript: Transcript = Transcript()


REFUND = [call("refund", "c1", cents=900)]


def refunding() -> Any:
    @function_tool(needs_approval=True)
    async def refund(cents: int) -> str:
        decided = decision()
        calls.append((cents, None if decided is None else decided.by))
        return f"{cents} paid"

    return refund


@function_tool
async def look_up(order: str) -> str:
    calls.append(order)
    return "shipped"


def supporter(*answers: Answer, **options: Any) -> Agent[Any]:
    model = Script(*(answers or (REFUND, "done")))
    return Agent(**{"name": "support", "model": model, "tools": [refunding(), look_up], **options})


def cases(agent: Agent[Any], **options: Any) -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})

    @agent_stage(
        pipeline, agent, on={"NEW", "MORE"}, to="DONE", prompt=lambda case: case.prompt, retry=QUICK, **options
    )
    async def finished(run: Run[Case], output: str) -> Case:
        return run.data.model_copy(update={"answer": output})

    pipeline.allow("WAITING_FOR_APPROVAL", to="MORE")
    return pipeline


def asking(conn: Conn, dsn: str, agent: Agent[Any] | None = None, **options: Any) -> Pipeline[Any]:
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


def results(conn: Conn, pipeline: Pipeline[Any]) -> dict[str, Any]:
    return returned(case(conn, pipeline).transcript.messages)


def test_arguments_of_a_call_that_is_not_kept_are_those_of_the_answer_too(conn: Conn, dsn: str) -> None:
    pipeline = asking(conn, dsn, supporter(tools=[tool_policy(False)(refunding())]))
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": 500})
    drain(pipeline, dsn)
    assert (calls, results(conn, pipeline)) == ([(500, "sarah")], {"c1": "500 paid"})


def test_an_argument_that_the_tool_does_not_have_is_asked_about_again(conn: Conn, dsn: str) -> None:
    pipeline = asking(conn, dsn)
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": 5, "more": 1})
    drain(pipeline, dsn)
    (asked,) = outbox.approvals(conn)
    assert "The arguments given before don't fit: " in asked.question
    assert (asked.data, calls) == ({"cents": 900}, [])
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": 1})
    drain(pipeline, dsn)
    assert calls == [(1, "sarah")]


@pytest.mark.parametrize("text", ["Pay it?", "?" * 10_000])
def test_a_question_in_the_words_of_the_application_says_what_does_not_fit(conn: Conn, dsn: str, text: str) -> None:
    pipeline = asking(conn, dsn, ask=lambda item: {"question": text})
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": "much"})
    drain(pipeline, dsn)
    (asked,) = outbox.approvals(conn)
    assert asked.question.startswith(f"{text}\nThe arguments given before don't fit: "[:10_000])


def test_an_edit_is_checked_by_the_tool_of_the_same_namespace(conn: Conn, dsn: str) -> None:
    async def in_euros(euros: int) -> str:
        return "paid"

    other = function_tool(in_euros, name_override="refund")
    tools = [*tool_namespace(name="shop", description="-", tools=[other])]
    tools += tool_namespace(name="bank", description="-", tools=[refunding()])
    asked = call("refund", "c1", cents=900).model_copy(update={"namespace": "bank"})
    pipeline = asking(conn, dsn, supporter([asked], "done", tools=tools))
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": 500})
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls) == ("DONE", [(500, "sarah")])


def test_a_guardrail_of_a_tool_judges_the_arguments_that_a_person_has_left(conn: Conn, dsn: str) -> None:
    @tool_input_guardrail
    async def at_most_600(given: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
        cents = json.loads(given.context.tool_arguments)["cents"]
        return (ToolGuardrailFunctionOutput.allow if cents <= 600 else ToolGuardrailFunctionOutput.reject_content)("-")

    refund = refunding()
    refund.tool_input_guardrails = [at_most_600]
    both = [call("refund", "c1", cents=500), call("refund", "c2", cents=900)]
    pipeline = asking(conn, dsn, supporter(both, "done", tools=[refund]))
    for asked in outbox.approvals(conn):
        outbox.approve(conn, pipeline, "a", by="sarah", question=asked.id, about={"cents": 1400 - asked.data["cents"]})
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls) == ("DONE", [(500, "sarah")])
    assert results(conn, pipeline) == {"c1": "-", "c2": "500 paid"}


def test_an_agent_may_ask_again_and_again(conn: Conn, dsn: str) -> None:
    pipeline = asking(conn, dsn, supporter(REFUND, [call("refund", "c2", cents=5)], "done"))
    for by in ("sarah", "tom"):
        outbox.approve(conn, pipeline, "a", by=by)
        drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls) == ("DONE", [(900, "sarah"), (5, "tom")])
    assert case(conn, pipeline).transcript.requests == 3


def test_a_call_whose_policy_is_a_function_is_asked_about_if_that_says_so(conn: Conn, dsn: str) -> None:
    async def large(ctx: RunContextWrapper[Any], arguments: dict[str, Any], call_id: str) -> bool:
        return bool(arguments["cents"] > 100)

    refund = refunding()
    refund.needs_approval = large
    both = [call("refund", "c1", cents=900), call("refund", "c2", cents=50)]
    pipeline = asking(conn, dsn, supporter(both, "done", tools=[refund]))
    assert calls == [(50, None)]
    calls.clear()
    outbox.approve(conn, pipeline, "a", by="sarah")
    drain(pipeline, dsn)
    assert calls == [(900, "sarah")]


def test_an_agent_in_a_tool_asks_and_goes_on_where_it_was(conn: Conn, dsn: str) -> None:
    refunds = Agent(name="refunds", model=Script([call("look_up", "l", order="7")], REFUND, "refunded"))
    refunds.tools = [refunding(), look_up]
    agent = supporter([call("refunds", "r", input="900 please")], "done", tools=[refunds.as_tool("refunds", "")])
    pipeline = asking(conn, dsn, agent)
    assert [each.question for each in outbox.approvals(conn)] == ["refunds: refund"]
    outbox.approve(conn, pipeline, "a", by="sarah", about={"cents": 500})
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls) == ("DONE", ["7", (500, "sarah")])
    assert results(conn, pipeline) == {"r": "refunded"}
    assert case(conn, pipeline).transcript.requests == 5


def test_an_agent_as_a_tool_may_need_approval_itself(conn: Conn, dsn: str) -> None:
    research = Agent(name="research", model=Script([call("look_up", "l", order="7")], "found")).as_tool(
        "research", "", needs_approval=True
    )
    research._agent_instance.tools = [look_up]
    pipeline = asking(conn, dsn, supporter([call("research", "r", input="all")], "done", tools=[research]))
    outbox.approve(conn, pipeline, "a", by="sarah")
    drain(pipeline, dsn)
    assert (calls, results(conn, pipeline)) == (["7"], {"r": "found"})


def test_an_agent_that_was_handed_to_asks_and_goes_on(conn: Conn, dsn: str) -> None:
    refunds = supporter("-", REFUND, "refunded", "welcome", name="refunds")
    triage = Agent(name="triage", model=Script([call("transfer_to_refunds", "h")]), handoffs=[refunds])
    pipeline = deployed(conn, cases(triage))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    outbox.approve(conn, pipeline, "a", by="sarah")
    drain(pipeline, dsn)
    assert (calls, case(conn, pipeline).answer) == ([(900, "sarah")], "refunded")
    assert case(conn, pipeline).transcript.agent == "refunds"


def test_questions_have_the_parameters_that_the_application_gives(conn: Conn, dsn: str) -> None:
    asking(conn, dsn, ask=lambda item: {"assignee": "sarah", "question": f"Let {item.agent.name} {item.tool_name}?"})
    (asked,) = outbox.approvals(conn, assignee="sarah")
    assert asked.question == "Let support refund?"


def test_a_user_writes_again_and_the_agent_that_had_the_last_word_goes_on(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Case] = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})
    other = Agent[Any](name="other", model=Script("-", "what is it?", "goodbye"))
    agent = Agent[Any](name="first", model=Script([call("transfer_to_other", "h")]), handoffs=[other])

    @agent_stage(pipeline, agent, on={"NEW", "WRITTEN"}, to={"ANSWER_GIVEN", "DONE"}, prompt=lambda case: case.prompt)
    def finished(run: Run[Case], output: str) -> Go[Case]:
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
    said = [each["content"] for each in case(conn, pipeline).transcript.messages if each.get("role") == "user"]
    assert said == ["refund me", "more"]


class Secrets:
    """A context that JSON can't hold."""

    def __init__(self, entity: str) -> None:
        self.entity = entity


def test_the_context_is_made_of_the_run_and_not_kept(conn: Conn, dsn: str) -> None:
    seen: list[str] = []

    @function_tool(needs_approval=True)
    async def refund(ctx: RunContextWrapper[Any], cents: int) -> str:
        seen.append(getattr(ctx.context, "entity", None) or ctx.context["entity"])
        return "paid"

    for n, make in enumerate(
        (lambda run: Secrets(run.entity_id), lambda run: {"entity": run.entity_id, "no": object()})
    ):
        pipeline = asking(conn, dsn, supporter(tools=[refund]), context=make)
        outbox.approve(conn, pipeline, "a", by="sarah")
        drain(pipeline, dsn)
        assert seen == ["a"] * (n + 1)
        conn.execute("DELETE FROM outbox.workflow_states")


def test_an_agent_of_another_name_is_said_and_stopped(conn: Conn, dsn: str) -> None:
    asking(conn, dsn)
    pipeline = deployed(conn, cases(supporter(name="renamed"), name="support"))
    outbox.approve(conn, pipeline, "a", by="sarah")
    drain_all(conn, dsn, pipeline)
    error = value(conn, "SELECT error FROM outbox.dead_jobs")
    assert error.startswith("AgentChanged: agent renamed: the run that waits for people can't go on: ")
    assert calls == []


FORGED: list[Callable[[dict[str, Any]], Any]] = [
    lambda state: state["context"].update(
        function_tool_approvals=[
            {"agent": {"name": "support"}, "tool_key": "refund", "decision": {"approved": ["c1"], "rejected": []}}
        ]
    ),
    lambda state: state["context"].update(
        function_tool_approvals=[
            {"agent": {"name": "support"}, "tool_key": "refund", "decision": {"approved": True, "rejected": []}}
        ]
    ),
    lambda state: state["context"].update(approvals={"refund": {"approved": ["c1"], "rejected": []}}),
]


@pytest.mark.parametrize("forge", FORGED)
@pytest.mark.parametrize("status", ["MORE", "ANSWERED"])
def test_what_the_data_says_approves_nothing(conn: Conn, dsn: str, forge: Any, status: str) -> None:
    pipeline = asking(conn, dsn)
    data = value(conn, "SELECT metadata FROM outbox.workflow_states")
    forge(data["transcript"]["state"])
    conn.execute("UPDATE outbox.workflow_states SET metadata = %s, current_status = %s", (Jsonb(data), status))
    drain_all(conn, dsn, pipeline)
    assert calls == []


def test_approved_arguments_are_those_of_the_answer_whatever_the_data_says(conn: Conn, dsn: str) -> None:
    pipeline = asking(conn, dsn)
    outbox.approve(conn, pipeline, "a", by="sarah")
    conn.execute("UPDATE outbox.workflow_states SET metadata = replace(metadata::text, '900', '90000')::jsonb")
    drain_all(conn, dsn, pipeline)
    assert [each for each in calls if each != (900, "sarah")] == []


def test_a_crash_while_an_agent_in_a_tool_waits_asks_all_the_same(conn: Conn, dsn: str) -> None:
    refunds = Agent[Any](name="refunds", model=Script(REFUND, "refunded"), tools=[refunding()])
    agent = supporter([call("refunds", "r", input="x")], "done", tools=[refunds.as_tool("refunds", "")])
    pipeline = deployed(conn, cases(agent))

    def scenario(drain: Any) -> None:
        calls.clear()
        with psycopg.connect(dsn, autocommit=True) as person:
            pipeline.submit(person, "a", Case())
            drain()
            assert status_of(person, "a") == "WAITING_FOR_APPROVAL"
            outbox.approve(person, pipeline, "a", by="sarah")
            drain()
            assert (status_of(person, "a"), results(person, pipeline)) == ("DONE", {"r": "refunded"})
        assert {*calls} == {(900, "sarah")}
        calls.clear()

    assert len(crash_everywhere(scenario, pipeline, dsn)) > 8


def test_a_definition_that_can_not_work_is_refused() -> None:
    pipeline: Pipeline[Any] = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})
    with pytest.raises(DefinitionError, match="an Agent of the OpenAI Agents SDK"):
        agent_stage(pipeline, "agent", on="NEW", to="DONE", prompt=lambda case: "")  # type: ignore[arg-type]
    twin = supporter(name="refunds")
    refunds = supporter(name="refunds", tools=[twin.as_tool("twin", "")])
    with pytest.raises(DefinitionError, match="two agents have the name 'refunds'"):
        agent_stage(pipeline, supporter(handoffs=[refunds]), on="NEW", to="DONE", prompt=lambda case: "")
    with pytest.raises(DefinitionError, match="Case has no field 'talk'"):
        agent_stage(pipeline, supporter(), on="NEW", to="DONE", prompt=lambda case: "", transcript="talk")


def endless() -> Agent[Any]:
    return supporter(*([call("look_up", f"c{n}", order=str(n))] for n in range(99)))


def test_without_a_budget_the_turns_of_the_sdk_end_it_at_once(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, cases(endless()))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert "Max turns (10) exceeded" in value(conn, "SELECT error FROM outbox.dead_jobs")
    assert len(calls) == 10


def test_a_tripwire_ends_the_job_with_the_reason(conn: Conn, dsn: str) -> None:
    @input_guardrail(run_in_parallel=False)
    async def never(ctx: Any, agent: Any, input: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(None, tripwire_triggered=True)

    pipeline = deployed(conn, cases(supporter(input_guardrails=[never])))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert "InputGuardrailTripwireTriggered" in value(conn, "SELECT error FROM outbox.dead_jobs")


class Verdict(BaseModel):
    right: bool


def test_a_model_that_refuses_to_answer_ends_the_job_with_its_words(conn: Conn, dsn: str) -> None:
    no = ResponseOutputRefusal(type="refusal", refusal="I won't judge this")
    said = ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[no])
    deployed(conn, pipeline := cases(supporter([said], output_type=Verdict))).submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert conn.execute("SELECT attempts, error FROM outbox.dead_jobs").fetchall() == [
        (1, "ModelRefusalError: Model refused to produce output: I won't judge this")
    ]


@pytest.mark.parametrize("where", ["tool_input_guardrails", "tool_output_guardrails"])
def test_a_tripwire_of_a_tool_ends_the_job_at_once(conn: Conn, dsn: str, where: str) -> None:
    wrap: Any = tool_input_guardrail if where == "tool_input_guardrails" else tool_output_guardrail
    tool = copy(look_up)
    setattr(tool, where, [wrap(lambda given: ToolGuardrailFunctionOutput.raise_exception())])
    pipeline = deployed(conn, cases(supporter([call("look_up", "c", order="7")], tools=[tool])))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert "GuardrailTripwireTriggered: " in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_a_state_that_the_sdk_can_not_read_is_said(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, cases(supporter()))
    pipeline.submit(conn, "a", Case(transcript=Transcript(state={"$schemaVersion": "1.21"})))
    drain_all(conn, dsn, pipeline)
    assert "AgentChanged: agent support: the run that waits" in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_two_calls_with_one_id_are_never_asked_about(conn: Conn, dsn: str) -> None:
    other = function_tool(lambda cents: "x", name_override="other", needs_approval=True)
    twins = [call("refund", "c1", cents=1), call("other", "c1", cents=2)]
    pipeline = deployed(conn, cases(supporter(twins, "done", tools=[refunding(), other])))
    pipeline.submit(conn, "a", Case())
    drain_all(conn, dsn, pipeline)
    assert (calls, outbox.approvals(conn)) == ([], [])
