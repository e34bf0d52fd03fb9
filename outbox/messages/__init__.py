"""Carries messages out (relay, log, targets) and in (consumer)."""
