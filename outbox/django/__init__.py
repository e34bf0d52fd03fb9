"""Embeds Outbox in a Django project: `INSTALLED_APPS = [..., "outbox.django"]`. See docs/django.md."""

from .discovery import pipelines
from .project import dsn

__all__ = ["dsn", "pipelines"]
