"""The SQL that ships with Outbox: `structure/`, `functions/` and `views/` are the schema, `queries/` runs on it."""
