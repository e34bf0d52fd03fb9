-- What keeps one bad row from harming others, and what is put back from being free.

-- `released` is how often in a row the job was given back though its handler, or the reading of its data, had been at work:
-- it makes each delay longer, and ends. `released_by` is the worker that could not read its data, and leaves it to others
-- for a while.
ALTER TABLE outbox.jobs ADD COLUMN released integer NOT NULL DEFAULT 0, ADD COLUMN released_by integer;

-- For `outbox doctor`. Neither column changes where a job is claimed or ends, so the index costs those that it has not.
CREATE INDEX jobs_released_often ON outbox.jobs (pipeline, stage) WHERE released > 2;
CREATE INDEX jobs_after_many_changes ON outbox.jobs (pipeline, status) WHERE entered > 1000;

-- Parents whose children have ended while the parent could not move.
CREATE INDEX waits_to_join ON outbox.waits (workflow_id) WHERE children <= 0;

-- A time that only Postgres can tell would stop every reader of the log. What is there already is read as the nearest time
-- that there is.
ALTER TABLE outbox.messages ADD CONSTRAINT messages_created_at_readable
    CHECK (created_at >= '0001-01-02 00:00+00' AND created_at < '9999-12-31 00:00+00') NOT VALID;
