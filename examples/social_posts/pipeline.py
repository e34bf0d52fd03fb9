"""Defines the demo's pipeline, to copy for your own.

RECEIVED -> enrich -> ENRICHED -> decide -> APPROVED -----------------> act -> COMPLETED
                                         -> WAITING_FOR_REVIEW -> (a person) -> APPROVED or REJECTED
"""

import os
from datetime import timedelta

import httpx
from pydantic import BaseModel

from outbox import Backoff, Go, Pipeline, Retry, Run, WaitForApproval


class Enrichment(BaseModel):
    """The enrichment service's answer about a post."""

    sentiment: float  # from -1 (furious) to 1 (delighted)
    hashtags: list[str]


class Post(BaseModel):
    """The data of a workflow: what the monitor found, and what the stages added."""

    author: str
    content: str
    enrichment: Enrichment | None = None


posts = Pipeline("posts", data=Post, initial="RECEIVED", final={"COMPLETED", "REJECTED"})

# A person decides about angry posts: with `outbox approve ENTITY`, or in any tool that speaks SQL:
#   UPDATE outbox.workflow_states SET current_status = 'APPROVED' WHERE entity_id = '...'
posts.allow("WAITING_FOR_REVIEW", to={"APPROVED", "REJECTED"})

# Outlasts an outage of half a minute. A service of your own may need minutes or hours.
patient = Backoff(first=0.2, factor=2, max=3, attempts=15)

world = httpx.AsyncClient(base_url=os.environ.get("OUTBOX_DEMO_WORLD", "http://127.0.0.1:8400"), timeout=1)


@posts.stage("enrich", on="RECEIVED", to="ENRICHED", retry=patient, timeout=10)
async def enrich(run: Run[Post]) -> Post:
    """Asks the enrichment service. Any answer that is not valid raises an exception, and the job is tried again."""
    answer = await call("/enrich", {"content": run.data.content})
    enrichment = Enrichment.model_validate_json(answer.content)
    run.publish("posts.enriched", {"entity_id": run.entity_id, "sentiment": enrichment.sentiment})
    return run.data.model_copy(update={"enrichment": enrichment})


@posts.stage("decide", on="ENRICHED", to={"WAITING_FOR_REVIEW", "APPROVED"})
async def decide(run: Run[Post]) -> Go[Post] | WaitForApproval[Post]:
    """Approves a post, or, if it is angry, asks a person, who has two days."""
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
    """Notifies the service, then writes to the CRM."""
    # A call is not part of a transaction, so it may be made twice. The key is the same in every attempt, so the
    # service recognizes a repeated call.
    await call("/notify", {"entity_id": run.entity_id}, {"Idempotency-Key": run.idempotency_key})
    # This row commits with COMPLETED, or not at all, so it needs no key.
    await run.connection.execute(
        "INSERT INTO demo_crm.posts (entity_id, author, content) VALUES (%s, %s, %s)",
        (run.entity_id, run.data.author, run.data.content),
    )


async def call(path: str, body: dict[str, str], headers: dict[str, str] | None = None) -> httpx.Response:
    """Posts to the service. After a 429, the job is tried again at the time that the service names."""
    answer = await world.post(path, json=body, headers=headers)
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise Retry(after=float(answer.headers["Retry-After"]))
    return answer.raise_for_status()
