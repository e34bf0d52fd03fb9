"""What happens to an order. A large one waits for a clerk, who approves it in the admin.

RECEIVED -> check -> READY -> ship -> SHIPPED
                  -> WAITING_FOR_CLERK -> READY or REFUSED
"""

from django.db.models import F
from django.utils import timezone
from pydantic import BaseModel

from outbox import Backoff, Go, Pipeline, Reject, Run, WaitForApproval
from outbox.django import in_step

from .models import Order, Product
from .tasks import send_receipt

LARGE = 100_000
"""Cents from which on a clerk looks at an order."""


class Placed(BaseModel):
    number: int
    cents: int


orders = Pipeline("orders", data=Placed, initial="RECEIVED", final={"SHIPPED", "REFUSED"})
orders.allow("WAITING_FOR_CLERK", to={"READY", "REFUSED"})


@orders.stage("check", on="RECEIVED", to={"READY", "WAITING_FOR_CLERK"})
def check(run: Run[Placed]) -> Go[Placed] | WaitForApproval[Placed]:
    if run.data.cents < LARGE:
        return Go("READY")
    return WaitForApproval(
        f"Ship order {run.data.number} of {run.data.cents / 100:.2f}?",
        status="WAITING_FOR_CLERK",
        options={"approve": "READY", "reject": "REFUSED"},
    )


@orders.stage("ship", on="READY", to="SHIPPED", transaction=True, retry=Backoff(attempts=5))
def ship(run: Run[Placed]) -> None:
    """Takes the goods from the stock. That, the order and the receipt's task commit with the status, or not at all."""
    with in_step(run):
        order = Order.objects.select_related("product").get(pk=run.data.number)
        left = Product.objects.filter(pk=order.product_id, stock__gte=order.quantity)
        if not left.update(stock=F("stock") - order.quantity):
            raise Reject(f"{order.product.name} is sold out")
        Order.objects.filter(pk=order.pk).update(shipped_at=timezone.now())
        send_receipt.enqueue(order.pk)
