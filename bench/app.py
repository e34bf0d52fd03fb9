"""The pipeline that is measured: three stages, a pydantic model, new data in one of them, a message in each."""

from pydantic import BaseModel

from outbox import Go, Pipeline, Run

STAGES = (("enrich", "RECEIVED", "ENRICHED"), ("decide", "ENRICHED", "APPROVED"), ("act", "APPROVED", "COMPLETED"))


class Post(BaseModel):
    content: str
    sentiment: float | None = None


posts = Pipeline("posts", data=Post, initial="RECEIVED", final={"COMPLETED"})


@posts.stage("enrich", on="RECEIVED", to="ENRICHED")
async def enrich(run: Run[Post]) -> Post:
    run.publish("posts.enriched", {"entity_id": run.entity_id})
    return run.data.model_copy(update={"sentiment": 0.5})


@posts.stage("decide", on="ENRICHED", to="APPROVED")
async def decide(run: Run[Post]) -> Go[Post]:
    run.publish("posts.decided", {"entity_id": run.entity_id})
    return Go("APPROVED")


@posts.stage("act", on="APPROVED", to="COMPLETED")
async def act(run: Run[Post]) -> None:
    run.publish("posts.completed", {"entity_id": run.entity_id})
