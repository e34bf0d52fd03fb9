"""What happens to an order after it was placed, in plain functions.

NEW -> check -> APPROVED -> ship -> SHIPPED
             -> REVIEW -> (a person) -> APPROVED or REJECTED
"""

from pydantic import BaseModel

from outbox import Go, Pipeline, SyncRun, WaitForApproval

LARGE = 100_000
"""Cents from which on a person looks at an order."""


class Order(BaseModel):
    order_id: int
    cents: int


orders = Pipeline("flask_shop", data=Order, initial="NEW", final={"SHIPPED", "REJECTED"})
orders.allow("REVIEW", to={"APPROVED", "REJECTED"})


@orders.stage("check", on="NEW", to={"APPROVED", "REVIEW"})
def check(run: SyncRun[Order]) -> Go[Order] | WaitForApproval[Order]:
    if run.data.cents < LARGE:
        return Go("APPROVED")
    return WaitForApproval(f"Order {run.data.order_id} is of {run.data.cents / 100:.2f}: send it?", status="REVIEW")


@orders.stage("ship", on="APPROVED", to="SHIPPED", transaction=True)
def ship(run: SyncRun[Order]) -> None:
    """Writes the parcel into the shop's table in the transaction that moves the order on."""
    run.connection.execute(
        "UPDATE shop_orders SET parcel = %s WHERE id = %s", (f"parcel of {run.entity_id}", run.data.order_id)
    )
