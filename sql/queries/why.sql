-- Why a workflow does not move.

-- name: why
-- Returns the cause, one sentence, one remedy, and the facts. See the function in sql/functions/why.sql.
-- Reads approvals, children, dead_jobs, jobs, legal_changes, limits, partition_rates, pauses, pipelines, routes, stages,
-- status_counts, status_flow, waits, workers, workflow_states. Uses workflow_states_entity_key, jobs_pkey, dead_jobs_pkey,
-- waits_pkey, approvals_open, children_by_parent, jobs_ready_for_claim, jobs_running_by_partition, status_flow_pkey.
SELECT w.cause, w.sentence, w.remedy, w.details::text FROM outbox.why(%(pipeline)s, %(entity)s) AS w;
