"""The tests of the shop, with `python manage.py test` or pytest-django. They use what any application may use."""

import json

from django.contrib.auth.models import User
from django.core import mail
from django.db import connection
from django.test import TestCase, TransactionTestCase

import outbox
from outbox.django import dsn, pipelines
from outbox.django.models import Approval, DeadJob, Workflow
from outbox.testing import drain

from .models import Order, Product
from .tasks import send_receipt


class ShopTest(TransactionTestCase):
    def setUp(self) -> None:
        Product.objects.create(name="chair", cents=5_000, stock=100)

    def place(self, quantity: int) -> int:
        asked = {"product": "chair", "quantity": quantity, "email": "ann@example.com"}
        answer = self.client.post("/orders/", json.dumps(asked), content_type="application/json")
        self.assertEqual(answer.status_code, 201)
        return int(answer.json()["number"])

    def run_everything(self) -> None:
        """Runs all that is due, as workers would."""
        drain(pipelines(), dsn())

    def history(self, number: int) -> list[str]:
        return list(self.client.get(f"/orders/{number}/").json()["history"])

    def test_an_order_is_shipped_and_its_receipt_is_sent(self) -> None:
        number = self.place(2)
        self.assertEqual(self.history(number), ["RECEIVED"])
        self.run_everything()
        self.assertEqual(self.history(number), ["RECEIVED", "READY", "SHIPPED"])
        self.assertEqual(Product.objects.get().stock, 98)
        self.assertIsNotNone(Order.objects.get(pk=number).shipped_at)
        self.assertEqual(
            [(each.subject, each.to) for each in mail.outbox], [(f"Your order {number}", ["ann@example.com"])]
        )

    def test_a_clerk_approves_a_large_order_in_the_admin(self) -> None:
        number = self.place(50)
        self.run_everything()
        self.assertEqual(self.history(number)[-1], "WAITING_FOR_CLERK")
        self.client.force_login(User.objects.create_superuser("clerk"))
        question = Approval.objects.get(entity_id=f"order_{number}")
        chosen = {"action": "approve", "_selected_action": [str(question.pk)], "index": "0", "reason": "known customer"}
        self.client.post("/admin/outbox/approval/", chosen)
        self.run_everything()
        self.assertEqual(self.history(number)[-2:], ["READY", "SHIPPED"])
        self.assertEqual(Approval.objects.get(pk=question.pk).decided_by, "clerk")

    def test_what_is_sold_out_is_neither_shipped_nor_taken_from_the_stock(self) -> None:
        number = self.place(10)
        Product.objects.update(stock=1)
        self.run_everything()
        self.assertEqual(DeadJob.objects.get(entity_id=f"order_{number}").stage, "ship")
        self.assertIsNone(Order.objects.get(pk=number).shipped_at)
        self.assertEqual(mail.outbox, [])

    def test_a_request_that_fails_leaves_no_order_and_no_workflow(self) -> None:
        before = Workflow.objects.count()
        with self.assertRaisesMessage(ValueError, "sold out"):
            self.place(101)
        self.assertEqual((Order.objects.count(), Workflow.objects.count()), (0, before))

    def test_a_task_has_a_result(self) -> None:
        order = Order.objects.create(email="bob@example.com", product=Product.objects.get(), quantity=1)
        result = send_receipt.enqueue(order.pk)
        self.run_everything()
        result.refresh()
        self.assertEqual(result.return_value, "bob@example.com")


class InOneTransaction(TestCase):
    """Tests in Django's TestCase see what they submit, and leave nothing behind."""

    def test_an_order_is_shipped_in_the_tests_transaction(self) -> None:
        Product.objects.create(name="table", cents=9_000, stock=3)
        asked = {"product": "table", "quantity": 1, "email": "eve@example.com"}
        number = self.client.post("/orders/", json.dumps(asked), content_type="application/json").json()["number"]
        self.assertIn("No worker", outbox.why(connection, "orders", f"order_{number}").sentence)
        drain(pipelines(), connection)
        self.assertEqual(Workflow.objects.get(entity_id=f"order_{number}").current_status, "SHIPPED")
        self.assertEqual(Product.objects.get(name="table").stock, 2)
        self.assertEqual([each.to for each in mail.outbox], [["eve@example.com"]])
