"""Sets Django up before test files here import models."""

import kit.django_project  # noqa: F401
