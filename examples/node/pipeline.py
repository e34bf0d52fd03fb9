"""The pipeline that publish.js uses: a post is written, a person approves it, and it is published."""

from pydantic import BaseModel

from outbox import Pipeline, Run, WaitForApproval


class Post(BaseModel):
    content: str


posts = Pipeline("posts", data=Post, initial="NEW", final={"PUBLISHED", "REJECTED"},
                 notify={"WAITING", "PUBLISHED", "REJECTED"}, strict=True)  # fmt: skip


@posts.stage("ask", on="NEW", to="WAITING")
async def ask(run: Run[Post]) -> WaitForApproval:
    return WaitForApproval("Publish it?", options={"approve": "APPROVED", "reject": "REJECTED"})


@posts.stage("publish", on="APPROVED", to="PUBLISHED")
async def publish(run: Run[Post]) -> None:
    run.log.info("published: %s", run.data.content)


posts.allow("WAITING", to={"APPROVED", "REJECTED"})
