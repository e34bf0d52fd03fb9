"""Creates the schema `outbox`, and tells Django of the models that read it."""

from __future__ import annotations

from django.db import migrations

from outbox.django.schema import MigrateOutbox


class Migration(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (MigrateOutbox(),)
