"""Three agents that coordinate: one plans and writes, many look something up, and a person edits.

reports:  ASKED -> plan -> LOOKING_UP -> (the last of its lookups) -> FOUND -> write -> WAITING_FOR_EDITOR
                                      -> (some failed, or an hour) -> GIVEN_UP
          WAITING_FOR_EDITOR -> (the editor, within a week) -> PUBLISHED or GIVEN_UP
lookups:  WANTED -> look_up -> ANSWERED, NOTHING or CANCELLED

    outbox deploy --app examples.research.pipeline
    outbox worker --app examples.research.pipeline
    outbox submit --pipeline reports <<< '{"entity_id": "cats", "metadata": {"topic": "cats"}}'
    outbox approve cats --by sarah --edit '{"topic": "cats", "draft": "Cats sleep."}' --app examples.research.pipeline
"""

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from outbox import Backoff, Go, Pipeline, Run, WaitForApproval, WaitForChildren


class Report(BaseModel):
    topic: str
    draft: str | None = None


class Lookup(BaseModel):
    report: str
    question: str
    answer: str | None = None


reports = Pipeline("reports", data=Report, initial="ASKED", final={"PUBLISHED", "GIVEN_UP"})
reports.allow("LOOKING_UP", to={"FOUND", "GIVEN_UP"})
reports.allow("WAITING_FOR_EDITOR", to={"PUBLISHED", "GIVEN_UP"})

lookups = Pipeline("lookups", data=Lookup, initial="WANTED", final={"ANSWERED", "NOTHING", "CANCELLED"})
lookups.allow("WANTED", to="CANCELLED")

patient = Backoff(first=0.2, factor=2, max=60, attempts=12)


async def ask_model(prompt: str) -> str:
    """Stands for a call that costs money and returns something else each time. Replace it with your own."""
    await asyncio.sleep(0.01)
    return f"an answer to: {prompt}"


@reports.stage("plan", on="ASKED", to="LOOKING_UP", retry=patient)
async def plan(run: Run[Report]) -> WaitForChildren[Report]:
    """Makes the questions in one call. Each becomes a workflow of its own, with this commit or not at all."""
    questions = await run.once("questions", make_questions, run.data.topic)
    for number, question in enumerate(questions):
        lookup = Lookup(report=run.entity_id, question=question)
        run.spawn(lookups, f"{run.entity_id}/{number}", lookup, cancel="CANCELLED")
    return WaitForChildren(
        to="FOUND", on_failure="GIVEN_UP", failed={"NOTHING"}, timeout=timedelta(hours=1), on_timeout="GIVEN_UP"
    )


@lookups.stage("look_up", on="WANTED", to={"ANSWERED", "NOTHING"}, retry=patient, concurrency=20)
async def look_up(run: Run[Lookup]) -> Go[Lookup]:
    answer = await run.once("answer", ask_model, run.data.question)
    if not answer:
        return Go("NOTHING")
    return Go("ANSWERED", run.data.model_copy(update={"answer": answer}))


@reports.stage("write", on="FOUND", to="WAITING_FOR_EDITOR", retry=patient, transaction=True)
async def write(run: Run[Report]) -> WaitForApproval[Report]:
    """Drafts from what the children have found, and asks. If this attempt dies, the next one gets the same draft."""
    found = await run.connection.execute(
        "SELECT metadata ->> 'answer' FROM outbox.workflow_states"
        " WHERE pipeline = 'lookups' AND metadata ->> 'report' = %s AND current_status = 'ANSWERED' ORDER BY entity_id",
        (run.entity_id,),
    )
    answers = [answer for (answer,) in await found.fetchall()]
    run.progress(f"writing from {len(answers)} answers")
    draft = await run.once("draft", ask_model, f"a report on {run.data.topic} from {len(answers)} answers")
    return WaitForApproval(
        f"Publish the report on {run.data.topic}?",
        data=run.data.model_copy(update={"draft": draft}),
        options={"approve": "PUBLISHED", "reject": "GIVEN_UP"},
        deadline=timedelta(days=7),
        on_deadline="GIVEN_UP",
        remind_every=timedelta(days=1),
    )


async def make_questions(topic: str) -> list[str]:
    plan = await ask_model(f"what to ask about {topic}")
    return [f"{aspect} of {topic} ({plan})" for aspect in ("history", "numbers", "rivals", "risks", "future")]
