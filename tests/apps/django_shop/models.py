from __future__ import annotations

from django.db import models


class Order(models.Model):
    number = models.CharField(max_length=50, unique=True)
    paid = models.IntegerField(default=0)
