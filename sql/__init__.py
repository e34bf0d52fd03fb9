"""The SQL that ships with Outbox: `structure/`, `functions/` and `views/` make the schema, `queries/` is what the engine runs."""
