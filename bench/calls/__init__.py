"""Measures workflows whose handlers wait for HTTP, on Outbox and on its peers. Each is a short file of its own."""
