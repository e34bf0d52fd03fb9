"""The commands of `outbox`, each with the help text that users read."""
