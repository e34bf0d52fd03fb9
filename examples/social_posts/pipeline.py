"""The pipeline of the demo, and the file to copy for a pipeline of your own.

RECEIVED -> enrich -> ENRICHED -> decide -> APPROVED -----------------> act -> COMPLETED
                                         -> WAITING_FOR_REVIEW -> (a person) -> APPROVED or REJECTED
"""

import os
from datetime import timedelta

import httpx
from pydantic import BaseModel

from outbox import Backoff, Go, Pipeline, Retry, Run, WaitForApproval


class Enrichment(BaseModel):
    """What the enrichment service says about a post."""

    sentiment: float  # from -1, furious, to 1, delighted
    hashtags: list[str]


class Post(BaseModel):
    """The data of a workflow: what the monitor found, and what the stages learned since."""

    author: str
    content: str
    enrichment: Enrichment | None = None


posts = Pipeline("posts", data=Post, initial="RECEIVED", final={"COMPLETED", "REJECTED"})

# A person decides about risky posts: `outbox approve ENTITY`, or in any tool that speaks SQL,
#   UPDATE outbox.workflow_states SET current_status = 'APPROVED' WHERE entity_id = '...'
posts.allow("WAITING_FOR_REVIEW", to={"APPROVED", "REJECTED"})

# Patient enough for an outage of half a minute; a service of your own may need minutes or hours.
patient = Backoff(first=0.2, factor=2, max=3, attempts=15)

world = httpx.AsyncClient(base_url=os.environ.get("OUTBOX_DEMO_WORLD", "http://127.0.0.1:8400"), timeout=1)


@posts.stage("enrich", on="RECEIVED", to="ENRICHED", retry=patient, timeout=10)
async def enrich(run: Run[Post]) -> Post:
    """Ask the enrichment service. Anything but a sound answer is an exception, and the job runs again."""
    answer = await call("/enrich", {"content": run.data.content})
    enrichment = Enrichment.model_validate_json(answer.content)
    run.publish("posts.enriched", {"entity_id": run.entity_id, "sentiment": enrichment.sentiment})
    return run.data.model_copy(update={"enrichment": enrichment})


@posts.stage("decide", on="ENRICHED", to={"WAITING_FOR_REVIEW", "APPROVED"})
async def decide(run: Run[Post]) -> Go[Post] | WaitForApproval[Post]:
    """An angry post is for a person to judge, within two days."""
    if run.data.enrichment is not None and run.data.enrichment.sentiment >= -0.5:
        return Go("APPROVED")
    return WaitForApproval(
        f"{run.data.author} is angry. Answer?",
        status="WAITING_FOR_REVIEW",
        assignee="sarah",
        deadline=timedelta(days=2),
        on_deadline="REJECTED",
        remind_every=timedelta(hours=4),
    )


@posts.stage("act", on="APPROVED", to="COMPLETED", retry=patient, timeout=10, transaction=True)
async def act(run: Run[Post]) -> None:
    """Tell the world, then write to the CRM."""
    # The world has no transaction, so this call may be made twice. The key is the same in every attempt: it
    # lets the other side count it once.
    await call("/notify", {"entity_id": run.entity_id}, {"Idempotency-Key": run.idempotency_key})
    # This row commits together with COMPLETED, or not at all: it needs no key.
    await run.connection.execute(
        "INSERT INTO demo_crm.posts (entity_id, author, content) VALUES (%s, %s, %s)",
        (run.entity_id, run.data.author, run.data.content),
    )


async def call(path: str, body: dict[str, str], headers: dict[str, str] | None = None) -> httpx.Response:
    """Post to the world; wait as long as it asks for when it is asked too often."""
    answer = await world.post(path, json=body, headers=headers)
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise Retry(after=float(answer.headers["Retry-After"]))
    return answer.raise_for_status()
