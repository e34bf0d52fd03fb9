from django.db import models


class Product(models.Model):
    name = models.CharField(max_length=100, unique=True)
    cents = models.PositiveIntegerField()
    stock = models.PositiveIntegerField()


class Order(models.Model):
    email = models.EmailField()
    product = models.ForeignKey(Product, models.PROTECT)
    quantity = models.PositiveIntegerField()
    shipped_at = models.DateTimeField(null=True)

    @property
    def cents(self) -> int:
        return self.quantity * self.product.cents
