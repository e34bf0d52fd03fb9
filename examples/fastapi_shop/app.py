"""The application: endpoints for customers and people who approve, and a worker beside them in each process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, status
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

import outbox

from .database import OrderRow, Session, engine
from .pipeline import Order, orders
from .settings import URL

worker = outbox.Worker(orders, URL, grace=20)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Serves while the worker works. A database that isn't ready for this code ends the start with an error."""
    try:
        async with worker:
            yield
    finally:
        await engine.dispose()


async def transaction() -> AsyncIterator[AsyncSession]:
    """Gives a request its session, whose transaction is committed before the answer is sent."""
    async with Session() as session, session.begin():
        yield session


InTransaction = Annotated[AsyncSession, Depends(transaction, scope="function")]

app = FastAPI(lifespan=lifespan)


class NewOrder(BaseModel):
    customer: str
    cents: int = Field(gt=0)


class Decision(BaseModel):
    by: str
    reason: str | None = None


@app.post("/orders", status_code=status.HTTP_201_CREATED)
async def place(new: NewOrder, session: InTransaction) -> dict[str, int]:
    """Places an order: its row and its workflow are committed together, or neither."""
    row = OrderRow(customer=new.customer, cents=new.cents)
    session.add(row)
    await session.flush()
    await orders.submit(session, f"order_{row.id}", Order(order_id=row.id, cents=new.cents), by=new.customer)
    return {"id": row.id}


@app.get("/orders/{order_id}")
async def look(order_id: int, session: InTransaction) -> dict[str, object]:
    workflow = await orders.get(session, f"order_{order_id}")  # first: the row is as new as what is told of it
    row = await session.get(OrderRow, order_id)
    if row is None or workflow is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    return {"id": row.id, "status": workflow.status, "parcel": row.parcel}


@app.post("/orders/{order_id}/approve")
async def approve(order_id: int, decision: Decision, session: InTransaction) -> dict[str, str]:
    entity = f"order_{order_id}"
    return {"status": await outbox.approve(session, orders, entity, by=decision.by, reason=decision.reason)}


@app.post("/orders/{order_id}/reject")
async def reject(order_id: int, decision: Decision, session: InTransaction) -> dict[str, str]:
    entity = f"order_{order_id}"
    return {"status": await outbox.reject(session, orders, entity, by=decision.by, reason=decision.reason)}


@app.exception_handler(outbox.Refused)
async def refused(_: Request, error: Exception) -> JSONResponse:
    """Answers what the database refuses: no such order, nothing asked, decided by somebody else."""
    return JSONResponse({"detail": str(error)}, status.HTTP_409_CONFLICT)


@app.exception_handler(outbox.InvalidInput)
async def invalid(_: Request, error: Exception) -> JSONResponse:
    """Answers what can't be stored, such as a name that is too long."""
    return JSONResponse({"detail": str(error)}, status.HTTP_422_UNPROCESSABLE_CONTENT)


@app.get("/livez")
async def live() -> dict[str, bool]:
    """Fails when the worker has ended by itself: then this process should be replaced."""
    if not worker.health().running:
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, worker.health().reason)
    return {"ok": True}


@app.get("/readyz")
async def ready() -> outbox.Health:
    """Fails while the worker does not work, such as when the database is away."""
    health = worker.health()
    if not health.ok:
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, health.reason)
    return health
