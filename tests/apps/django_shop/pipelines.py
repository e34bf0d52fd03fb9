from __future__ import annotations

from typing import Any

from outbox import Pipeline, Run

orders = Pipeline("orders", initial="NEW", final={"PAID", "REFUSED"})


@orders.stage("pay", on="NEW", to="PAID", transaction=True)
def pay(run: Run[dict[str, Any]]) -> None:
    """Does nothing: tests that need more define pipelines of their own."""
