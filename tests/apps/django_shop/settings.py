"""The settings of the tests' Django project. Where its database is: kit/django_project.py."""

from __future__ import annotations

import os

from psycopg.conninfo import conninfo_to_dict

_at = conninfo_to_dict(os.environ.get("OUTBOX_TEST_DJANGO", ""))  # in a process of its own
_database = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": _at.get("dbname", ""),
    **{key.upper(): _at.get(key, "") for key in ("user", "password", "host", "port")},
}
DATABASES = {"default": _database, "other": dict(_database)}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "outbox.django",
    "apps.django_shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "apps.django_shop.urls"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SECRET_KEY = "of the tests"
ALLOWED_HOSTS = ["*"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"  # Django sets it for the whole process, and the other tests run there, too
TASKS = {"default": {"BACKEND": "outbox.django.tasks.OutboxBackend", "QUEUES": ["default", "emails"]}}
