"""What happens to an order after it was placed.

NEW -> check -> APPROVED -> charge -> CHARGED -> ship -> SHIPPED
             -> REVIEW -> (a person) -> APPROVED or REJECTED
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import BaseModel

from outbox import Go, Pipeline, Run, WaitForApproval

LARGE = 100_000
"""Cents from which on a person looks at an order."""


class Order(BaseModel):
    order_id: int
    cents: int
    charge: str | None = None


class Payments:
    """Stands for the client of a payment service, which takes a key by which it charges once."""

    async def charge(self, cents: int, *, key: str) -> str:
        return f"ch_{key.partition('-')[0]}_{cents}"

    async def close(self) -> None: ...


@asynccontextmanager
async def payments() -> AsyncIterator[Payments]:
    """Is open in each process that runs stages, from before its first handler until after its last."""
    client = Payments()
    try:
        yield client
    finally:
        await client.close()


orders = Pipeline("shop", data=Order, initial="NEW", final={"SHIPPED", "REJECTED"}, lifespan=payments)
orders.allow("REVIEW", to={"APPROVED", "REJECTED"})


@orders.stage("check", on="NEW", to={"APPROVED", "REVIEW"})
async def check(run: Run[Order]) -> Go[Order] | WaitForApproval[Order]:
    if run.data.cents < LARGE:
        return Go("APPROVED")
    return WaitForApproval(f"Order {run.data.order_id} is of {run.data.cents / 100:.2f}: send it?", status="REVIEW")


@orders.stage("charge", on="APPROVED", to="CHARGED")
async def charge(run: Run[Order, Payments]) -> Order:
    charged = await run.resources.charge(run.data.cents, key=run.idempotency_key)
    return run.data.model_copy(update={"charge": charged})


@orders.stage("ship", on="CHARGED", to="SHIPPED", transaction=True)
async def ship(run: Run[Order]) -> None:
    """Writes the parcel into the shop's table in the transaction that moves the order on."""
    await run.connection.execute(
        "UPDATE shop_orders SET parcel = %s WHERE id = %s", (f"parcel of {run.entity_id}", run.data.order_id)
    )
