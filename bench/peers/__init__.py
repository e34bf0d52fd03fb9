"""Measures Outbox beside its peers. Each peer is a short file that runs in its own environment; see bench/README.md."""
