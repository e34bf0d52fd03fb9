"""Embeds Outbox in a Django project: `INSTALLED_APPS = [..., "outbox.django"]`. See docs/django.md."""

from .discovery import pipelines
from .project import dsn
from .step import in_step

__all__ = ["dsn", "in_step", "pipelines"]
