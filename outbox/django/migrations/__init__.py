"""Holds the migration that creates the schema `outbox`. Later releases need no other: see outbox/django/schema.py."""
