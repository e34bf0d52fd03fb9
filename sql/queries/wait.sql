-- Waiting until a workflow has come to a status.

-- name: standing
-- Returns the workflow's status (null: there is none), whether it has ended, whether its job is dead, whether it has come to
-- one of these statuses after this version, and what keeps this transaction from seeing it come: that it has written, or its
-- snapshot.
-- Reads dead_jobs, routes, state_changes, workflow_states. Uses workflow_states_entity_key, state_changes_pkey, routes_pkey,
-- dead_jobs_pkey.
SELECT w.current_status,
       EXISTS (SELECT FROM outbox.routes AS r WHERE r.pipeline = w.pipeline AND r.status = w.current_status AND r.final),
       EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = w.id),
       %(since)s::bigint = 0 AND w.current_status = ANY (%(statuses)s::text[]) OR EXISTS (
           SELECT FROM outbox.state_changes AS c
           WHERE c.workflow_id = w.id AND c.version > %(since)s::bigint AND c.to_status = ANY (%(statuses)s::text[])),
       pg_current_xact_id_if_assigned() IS NOT NULL,
       statement_timestamp() > now() AND current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')
FROM (SELECT) AS one
LEFT JOIN outbox.workflow_states AS w ON w.pipeline = %(pipeline)s AND w.entity_id = %(entity)s;

-- name: listen
-- Has the session be told of changes to statuses that a pipeline notifies of.
LISTEN "outbox.status";
