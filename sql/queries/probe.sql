-- Whether a server commits: see outbox/database/probe.py.

-- name: probe
-- Writes a record to the log of the server and nothing else, so that its commit waits for the disk and for a synchronous
-- standby, as others do.
SELECT pg_logical_emit_message(true, 'outbox', '');
