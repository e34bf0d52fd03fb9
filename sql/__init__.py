"""The SQL that ships with Outbox: `migrations/` makes the schema, `queries/` is what the engine runs."""
