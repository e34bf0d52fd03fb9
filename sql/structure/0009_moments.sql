-- Times are those of the change, not of the start of its transaction: an application, or a handler with a transaction of its
-- own, may take minutes between the two, and history would not be in the order of its versions. A workflow's first two times
-- are equal, so they are those of the statement.
ALTER TABLE outbox.workflow_states ALTER COLUMN created_at SET DEFAULT statement_timestamp(),
    ALTER COLUMN updated_at SET DEFAULT statement_timestamp();
ALTER TABLE outbox.state_changes ALTER COLUMN at SET DEFAULT clock_timestamp();
ALTER TABLE outbox.jobs ALTER COLUMN run_at SET DEFAULT clock_timestamp();
ALTER TABLE outbox.dead_jobs ALTER COLUMN died_at SET DEFAULT clock_timestamp();
ALTER TABLE outbox.approvals ALTER COLUMN asked_at SET DEFAULT clock_timestamp();
ALTER TABLE outbox.waits ALTER COLUMN since SET DEFAULT clock_timestamp();
ALTER TABLE outbox.messages ALTER COLUMN created_at SET DEFAULT clock_timestamp();
ALTER TABLE outbox.pauses ALTER COLUMN paused_at SET DEFAULT clock_timestamp();
ALTER TABLE outbox.pipelines ALTER COLUMN deployed_at SET DEFAULT clock_timestamp();
