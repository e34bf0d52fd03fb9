"""An order waits for its payment: a signal from another system, with a timeout. If the sum is wrong, a clerk decides.

RECEIVED -> bill -> WAITING_FOR_PAYMENT -> (the signal "payment") -> PAID -> check -> READY -> ship -> SHIPPED
                                        -> (14 days) -> EXPIRED           -> WAITING_FOR_CLERK -> READY or REFUNDED

    outbox deploy --app examples.orders.pipeline:orders
    outbox worker --app examples.orders.pipeline:orders
    outbox signal order_7 payment '{"cents": 1999, "charge": "ch_1"}' --id ch_1
"""

from datetime import timedelta

from pydantic import BaseModel

from outbox import Go, Pipeline, Run, WaitForApproval, WaitForSignal


class Payment(BaseModel):
    """The payload of the payment service's signal."""

    cents: int
    charge: str


class Order(BaseModel):
    cents: int
    payment: Payment | None = None


orders = Pipeline("orders", data=Order, initial="RECEIVED", final={"SHIPPED", "EXPIRED", "REFUNDED"})
orders.allow("WAITING_FOR_PAYMENT", to={"PAID", "EXPIRED"})
orders.allow("WAITING_FOR_CLERK", to={"READY", "REFUNDED"})


@orders.stage("bill", on="RECEIVED", to="WAITING_FOR_PAYMENT")
async def bill(run: Run[Order]) -> WaitForSignal[Order]:
    """Asks for the money. A payment that comes before the wait begins is kept until it does."""
    run.publish("orders.billed", {"order": run.entity_id, "cents": run.data.cents})
    return WaitForSignal("payment", to="PAID", into="payment", timeout=timedelta(days=14), on_timeout="EXPIRED")


@orders.stage("check", on="PAID", to={"READY", "WAITING_FOR_CLERK"})
async def check(run: Run[Order]) -> Go[Order] | WaitForApproval[Order]:
    """Compares what was paid with what was asked for. If they differ, a clerk decides."""
    paid = run.data.payment.cents if run.data.payment else 0
    if paid == run.data.cents:
        return Go("READY")
    return WaitForApproval(
        f"{paid} cents were paid of {run.data.cents}. Ship it?",
        status="WAITING_FOR_CLERK",
        options={"ship": "READY", "refund": "REFUNDED"},
        deadline=timedelta(days=7),
        on_deadline="REFUNDED",
        remind_every=timedelta(days=1),
    )


@orders.stage("ship", on="READY", to="SHIPPED")
async def ship(run: Run[Order]) -> None:
    run.publish("orders.shipped", {"order": run.entity_id})
