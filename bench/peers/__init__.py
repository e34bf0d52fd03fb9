"""Measures Outbox beside its peers: one short file a peer, run in an environment of its own; see bench/README.md."""
