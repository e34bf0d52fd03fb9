-- A dead job keeps the traceback of its last attempt, from the handler down. Null: the worker was lost with it.

ALTER TABLE outbox.dead_jobs ADD COLUMN traceback text;
