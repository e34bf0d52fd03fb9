"""Messages on their way out (relay, log, targets) and in (consumer)."""
