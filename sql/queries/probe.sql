-- Whether a server commits: see outbox/database/probe.py.

-- name: probe
-- Writes a record to the log of the server and nothing else, so that its commit waits for the disk and for a synchronous
-- standby, as others do. Returns whether others can only read, for which this itself is no write.
SELECT pg_logical_emit_message(true, 'outbox', '') IS NOT NULL AND current_setting('transaction_read_only')::boolean;
