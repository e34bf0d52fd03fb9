"""Compares what a `kill -9` costs an agent, with Outbox and with other engines. Each is a short file of its own."""
