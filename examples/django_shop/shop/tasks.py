from django.core.mail import send_mail
from django_tasks import task  # Django 6: from django.tasks import task

from .models import Order


@task
def send_receipt(number: int) -> str:
    order = Order.objects.select_related("product").get(pk=number)
    text = f"{order.quantity} x {order.product.name}: {order.cents / 100:.2f}"
    send_mail(f"Your order {number}", text, "shop@example.com", [order.email])
    return order.email
