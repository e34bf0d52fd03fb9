from django.core.mail import send_mail

from .models import Order

try:
    from django.tasks import task
except ModuleNotFoundError:  # before Django 6
    from django_tasks import task


@task
def send_receipt(number: int) -> str:
    order = Order.objects.select_related("product").get(pk=number)
    text = f"{order.quantity} x {order.product.name}: {order.cents / 100:.2f}"
    send_mail(f"Your order {number}", text, "shop@example.com", [order.email])
    return order.email
