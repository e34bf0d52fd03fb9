-- A large result of an effect is a blob, as one of run.once is. The blob is kept while the work has a job, and the row longer.
ALTER TABLE outbox.effects ADD COLUMN blob bytea;
