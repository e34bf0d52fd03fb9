"""Applications that the command line's tests name with --app."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict

from kit.pipelines import Post, make_posts
from outbox import Go, Pipeline, Reject, Run, WaitForApproval, WaitForSignal


async def decide(run: Run[Post]) -> Go[Post]:
    if "rejected" in run.data.content:
        raise Reject(run.data.content)
    return Go("WAITING_FOR_REVIEW" if "risky" in run.data.content else "APPROVED")


posts = make_posts(decide=decide)

# The same without review: workflows that wait for it would be stranded.
hasty: Pipeline[Any] = Pipeline("posts", data=Post, initial="RECEIVED", final={"COMPLETED"})
hasty.stage("enrich", on="RECEIVED", to="COMPLETED")(lambda run: None)


class Ticket(BaseModel):
    model_config = ConfigDict(extra="forbid")
    subject: str


tickets: Pipeline[Any] = Pipeline("tickets", data=Ticket, initial="NEW", final={"DONE"})
tickets.allow("NEW", to="DONE")


class Order(BaseModel):
    total: int


orders: Pipeline[Any] = Pipeline("orders", data=Order, initial="NEW", final={"APPROVED", "REJECTED", "PAID"})


@orders.stage("check", on="NEW", to="WAITING")
async def check(run: Run[Order]) -> Any:
    if run.data.total < 10:
        return WaitForSignal("payment", to="PAID")
    return WaitForApproval("Ship it?", assignee="sarah", deadline=timedelta(days=3), on_deadline="REJECTED")


orders.allow("WAITING", to={"APPROVED", "REJECTED", "PAID"})

both = [posts, tickets]
number = 5


# The next version of `orders` in kit/waits.py: a stage takes the status in which workflows wait.
automated: Pipeline[Any] = Pipeline("orders", initial="NEW", final={"SENT", "REFUSED", "LATE"})
automated.stage("ask", on="NEW", to="WAITING")(lambda run: None)
automated.stage("judge", on="WAITING", to={"PAID", "REFUSED"})(lambda run: Go("REFUSED"))
automated.stage("send", on="PAID", to="SENT")(lambda run: None)
automated.allow("WAITING", to="LATE")

sloppy: Pipeline[Any] = Pipeline("sloppy", initial="NEW", final={"DONE"})
sloppy.stage("work", on="NEW", to="DONE")(lambda run: None)
sloppy.stage("lost", on="NOWHERE", to="DONE")(lambda run: None)
