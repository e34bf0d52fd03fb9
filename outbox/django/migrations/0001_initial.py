"""Creates the schema `outbox`, and tells Django of the models that read it.

The models are taken as they are in the code. No database has tables that are made from them, so they need no migrations
of their own, and other apps may refer to them.
"""

from __future__ import annotations

from typing import Any

from django.db import migrations
from django.db.migrations.state import ModelState

from outbox.django import models
from outbox.django.schema import MigrateOutbox


def _as_declared(model: Any) -> migrations.CreateModel:
    state = ModelState.from_model(model)
    return migrations.CreateModel(state.name, list(state.fields.items()), state.options)


class Migration(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (
        MigrateOutbox(),
        *map(_as_declared, (models.Workflow, models.StateChange, models.Job, models.DeadJob, models.Approval)),
    )
