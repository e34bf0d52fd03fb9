"""The commands of `outbox`, each with its help: what it does, in the words that a user reads."""
