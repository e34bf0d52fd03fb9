"""Defines models to read what is in the schema `outbox`."""
