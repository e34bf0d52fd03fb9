-- What `outbox deploy` looks at before it writes: workflows that the new code would strand. It only reads.

-- name: workflows_in_statuses
-- Returns how many workflows are in each of these statuses. It counts the table itself, not the counters.
-- Reads workflow_states. Uses workflow_states_entity_key.
SELECT w.current_status, count(*)
FROM outbox.workflow_states AS w
WHERE w.pipeline = %(pipeline)s AND w.current_status = ANY (%(statuses)s::text[])
GROUP BY w.current_status ORDER BY w.current_status;

-- name: children_cancelled_to
-- Returns how many children that have not ended would move to each of these statuses when their parent ends first, and the
-- first entities.
-- Reads children, routes, workflow_states. Uses workflow_states_pkey, routes_pkey.
SELECT c.cancel_to, count(*), (array_agg(w.entity_id ORDER BY w.entity_id))[1:%(most)s::integer]
FROM outbox.children AS c
JOIN outbox.workflow_states AS w ON w.id = c.child_id
JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
WHERE w.pipeline = %(pipeline)s AND c.cancel_to = ANY (%(statuses)s::text[]) AND NOT r.final
GROUP BY c.cancel_to ORDER BY c.cancel_to;

-- name: waits_in_statuses
-- Returns the waits in these statuses that a change of the status ends: how many of each kind, and the first entities.
-- Reads waiting. Uses approvals_open, waits_pkey, workflow_states_pkey.
SELECT w.status, w.kind, count(DISTINCT w.workflow_id), (array_agg(DISTINCT w.entity_id))[1:%(most)s::integer]
FROM outbox.waiting AS w
WHERE w.pipeline = %(pipeline)s AND w.status = ANY (%(statuses)s::text[]) AND w.kind NOT IN ('deadline', 'timer')
GROUP BY w.status, w.kind ORDER BY w.status, w.kind;

-- name: waits_for_changes
-- Returns the waits that lead to one of these changes, and the first entities.
-- Reads waiting. Uses approvals_open, jobs_with_deadline, waits_pkey, workflow_states_pkey.
SELECT w.status, e.key, e.value, count(DISTINCT w.workflow_id), (array_agg(DISTINCT w.entity_id))[1:%(most)s::integer]
FROM outbox.waiting AS w
CROSS JOIN LATERAL jsonb_each_text(w.ended_by) AS e (key, value)
JOIN unnest(%(froms)s::text[], %(tos)s::text[]) AS n (from_status, to_status)
    ON n.from_status = w.status AND n.to_status = e.value
WHERE w.pipeline = %(pipeline)s
GROUP BY w.status, e.key, e.value ORDER BY w.status, e.key, e.value;

-- name: table_size
-- Returns approximately how many workflows there are, as of the last analyze.
SELECT reltuples::float8 FROM pg_class WHERE oid = 'outbox.workflow_states'::regclass;

-- name: data_of_some
-- Returns the data of workflows that have not ended, from some randomly chosen pages of the table.
-- Reads workflow_states.
SELECT w.entity_id, w.current_status, w.metadata::text
FROM outbox.workflow_states AS w TABLESAMPLE SYSTEM (%(percent)s)
WHERE w.pipeline = %(pipeline)s AND w.current_status <> ALL (%(ended)s::text[]);

-- name: data_of_all
-- Returns the data of all workflows of a pipeline that have not ended.
-- Reads workflow_states. Uses workflow_states_entity_key.
SELECT w.entity_id, w.current_status, w.metadata::text
FROM outbox.workflow_states AS w
WHERE w.pipeline = %(pipeline)s AND w.current_status <> ALL (%(ended)s::text[]);
