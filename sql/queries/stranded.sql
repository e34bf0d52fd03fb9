-- What `outbox deploy --check` looks at: workflows that the new code would strand. Reads only.

-- name: stranded_statuses
-- Returns the statuses that would be unknown and have workflows: how many, with which waits, and for how long at most.
-- Reads approvals, waits, workflow_states. Uses workflow_states_entity_key, approvals_open, waits_pkey.
SELECT w.current_status, count(*), count(a.id), count(s.workflow_id), extract(epoch FROM now() - min(w.updated_at))::float8
FROM outbox.workflow_states AS w
LEFT JOIN outbox.approvals AS a ON a.workflow_id = w.id AND a.ended_at IS NULL
LEFT JOIN outbox.waits AS s ON s.workflow_id = w.id
WHERE w.pipeline = %(pipeline)s AND w.current_status <> ALL (%(known)s::text[])
GROUP BY w.current_status ORDER BY w.current_status;

-- name: stranded_waits
-- Returns the waits that would lead to a status which is not a legal change from where the workflow stands.
-- Reads approvals, jobs, waits, workflow_states. Uses workflow_states_pkey.
WITH leads AS (
    SELECT a.workflow_id, 'the answer ' || o.key AS what, o.value AS to_status
    FROM outbox.approvals AS a CROSS JOIN LATERAL jsonb_each_text(a.options) AS o (key, value)
    WHERE a.pipeline = %(pipeline)s AND a.ended_at IS NULL
    UNION ALL
    SELECT s.workflow_id, coalesce('the signal ' || s.signal, 'its children'), s.to_status FROM outbox.waits AS s
    UNION ALL
    SELECT s.workflow_id, 'its children', s.on_failure FROM outbox.waits AS s WHERE s.on_failure IS NOT NULL
    UNION ALL
    SELECT j.workflow_id, 'its deadline', j.on_deadline FROM outbox.jobs AS j
    WHERE j.pipeline = %(pipeline)s AND j.deadline IS NOT NULL
)
SELECT w.current_status, l.what, l.to_status, count(*), extract(epoch FROM now() - min(w.updated_at))::float8
FROM leads AS l
JOIN outbox.workflow_states AS w ON w.id = l.workflow_id AND w.pipeline = %(pipeline)s
WHERE NOT EXISTS (
    SELECT FROM unnest(%(froms)s::text[], %(tos)s::text[]) AS n (from_status, to_status)
    WHERE n.from_status = w.current_status AND n.to_status = l.to_status)
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;

-- name: table_size
-- Returns about how many workflows there are, as of the last analyze.
SELECT reltuples::float8 FROM pg_class WHERE oid = 'outbox.workflow_states'::regclass;

-- name: data_of_some
-- Returns the data of workflows that have not ended, on some pages of the table chosen at random.
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
