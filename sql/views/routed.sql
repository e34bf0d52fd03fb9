-- Each workflow with the job that it has by its route, ready to be inserted into outbox.jobs. The route is the present one:
-- the job that is there may have been made by an earlier one, and may be running.
CREATE OR REPLACE VIEW outbox.routed AS
SELECT w.id AS workflow_id, w.pipeline, j.stage, w.current_status AS status, w.version AS entered, j.run_at, j.due, j.deadline,
       j.on_deadline, j.partition, j.priority
FROM outbox.workflow_states AS w
CROSS JOIN LATERAL outbox.job_of(w.pipeline, w.current_status, w.metadata) AS j;
COMMENT ON VIEW outbox.routed IS 'Internal: each workflow with the job that it has by its route.';
