import json

from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from outbox.django.models import Workflow

from .models import Order, Product
from .pipelines import Placed, orders


@csrf_exempt
@require_POST
def place_order(request: HttpRequest) -> JsonResponse:
    """Places an order and starts its workflow in the transaction of the request."""
    asked = json.loads(request.body)
    product = get_object_or_404(Product, name=asked["product"])
    order = Order.objects.create(email=asked["email"], product=product, quantity=asked["quantity"])
    orders.submit(connection, f"order_{order.pk}", Placed(number=order.pk, cents=order.cents), by=order.email)
    if order.quantity > product.stock:
        raise ValueError("sold out")  # neither the order nor its workflow is there
    return JsonResponse({"number": order.pk}, status=201)


def show_order(request: HttpRequest, number: int) -> JsonResponse:
    workflow = get_object_or_404(Workflow, pipeline="orders", entity_id=f"order_{number}")
    history = [change.to_status for change in workflow.changes.all()]
    return JsonResponse({"status": workflow.current_status, "history": history})
