-- A job that is due never, or was due always, can't be waited for: before Postgres 17 no age of it can be told, and the
-- sweep and outbox.overview fail over it. Who sets run_at by hand is told so. NOT VALID: no scan of a hot table.
ALTER TABLE outbox.jobs ADD CONSTRAINT jobs_run_at_finite CHECK (isfinite(run_at)) NOT VALID;
