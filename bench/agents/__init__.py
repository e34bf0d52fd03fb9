"""Measures what agents cost that run in handlers, and those that wait for people."""
