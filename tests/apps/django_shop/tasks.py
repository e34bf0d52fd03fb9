from __future__ import annotations

from typing import Any

try:
    from django.tasks import task
except ModuleNotFoundError:  # before Django 6
    from django_tasks import task

from apps.django_shop.models import Order

called: list[Any] = []


@task
def make_order(number: str, *, paid: int = 0) -> dict[str, Any]:
    called.append(number)
    return {"made": Order.objects.create(number=number, paid=paid).number}


@task(queue_name="emails", priority=5)
async def send(to: str) -> str:
    called.append(to)
    return f"sent to {to}"


@task
def fail(text: str) -> None:
    called.append(text)
    raise ValueError(text)


@task
def fail_oddly() -> None:
    raise ValueError("in the file \0")


@task(takes_context=True)
def tell(context: Any) -> list[Any]:
    return [context.attempt, context.task_result.id]


@task
def unstorable() -> object:
    return object()
