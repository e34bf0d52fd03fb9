-- What the web page shows, and no command does.

-- name: moves_of
-- Returns the statuses to which a workflow may be moved from a status, whether that one is final, and the status for cancelled
-- ones.
-- Reads legal_changes, pipelines, routes. Uses legal_changes_pkey, pipelines_pkey, routes_pkey.
SELECT ARRAY(SELECT l.to_status FROM outbox.legal_changes AS l
             WHERE l.pipeline = %(pipeline)s::text AND l.from_status = %(status)s::text ORDER BY l.to_status) AS moves,
       EXISTS (SELECT FROM outbox.routes AS r
               WHERE r.pipeline = %(pipeline)s::text AND r.status = %(status)s::text AND r.final) AS final,
       (SELECT p.cancelled FROM outbox.pipelines AS p WHERE p.pipeline = %(pipeline)s::text) AS cancelled;

-- name: moves_within
-- Returns the statuses to which legal changes of a pipeline lead, from one of its statuses or (null) from any.
-- Reads legal_changes. Uses legal_changes_pkey.
SELECT DISTINCT l.to_status AS status FROM outbox.legal_changes AS l
WHERE l.pipeline = %(pipeline)s::text AND (%(status)s::text IS NULL OR l.from_status = %(status)s::text)
ORDER BY l.to_status;

-- name: pipeline_map
-- Returns the initial status of a pipeline, its statuses with their stages, and its legal changes. No row if it isn't deployed.
-- Reads legal_changes, pipelines, routes. Uses legal_changes_pkey, pipelines_pkey, routes_pkey.
SELECT p.initial_status AS initial,
       coalesce((SELECT jsonb_object_agg(r.status, r.final) FROM outbox.routes AS r WHERE r.pipeline = p.pipeline), '{}') AS final,
       coalesce((SELECT jsonb_agg(jsonb_build_array(l.from_status, l.to_status) ORDER BY l.from_status, l.to_status)
                 FROM outbox.legal_changes AS l WHERE l.pipeline = p.pipeline), '[]') AS changes
FROM outbox.pipelines AS p WHERE p.pipeline = %(pipeline)s::text;

-- name: pauses
-- Returns the stages that are paused, by whom and why.
-- Reads pauses.
SELECT p.pipeline, p.stage, p.paused_by, p.login, p.reason, p.paused_at FROM outbox.pauses AS p ORDER BY p.pipeline, p.stage;

-- name: flow_of_hour
-- Returns how many workflows have left each status in each of the last sixty minutes in which some did.
-- Reads flow. Uses status_flow_pkey.
SELECT f.pipeline, f.status, floor(extract(epoch FROM date_trunc('minute', now()) - f.minute) / 60)::integer AS ago, f.went
FROM outbox.flow AS f
WHERE f.minute > date_trunc('minute', now()) - interval '60 minutes' AND f.went > 0;

-- name: changes_seen
-- Returns marks of what the page shows, each of which differs when that has changed: counts, open questions, dead jobs, workers.
-- Reads actions, approvals, dead_counts, pauses, relays, status_counts, workers. Uses approvals_open_by_time, actions_pkey.
SELECT coalesce((SELECT concat_ws(',', count(*), sum(c.workflows), max(c.at)) FROM outbox.status_counts AS c), '') AS flow,
       coalesce((SELECT concat_ws(',', count(*), max(c.at)) FROM outbox.dead_counts AS c), '') AS dead,
       -- Where there are more than are counted, an answer is seen by the status that it changes.
       concat_ws(',', (SELECT concat_ws('.', count(*), sum(a.votes),
                                        CASE WHEN count(*) = 1000 THEN (SELECT max(c.at) FROM outbox.status_counts AS c) END)
                       FROM (SELECT a.votes FROM outbox.approvals AS a WHERE a.ended_at IS NULL
                             ORDER BY a.id LIMIT 1000) AS a),
                      (SELECT a.id FROM outbox.approvals AS a WHERE a.ended_at IS NULL ORDER BY a.id DESC LIMIT 1)) AS approvals,
       concat_ws(',', (SELECT string_agg(concat_ws('.', p.pipeline, p.stage), ',') FROM outbox.pauses AS p),
                      (SELECT a.id FROM outbox.actions AS a ORDER BY a.id DESC LIMIT 1)) AS actions,
       concat_ws(',', (SELECT string_agg(w.id::text, ',' ORDER BY w.id) FROM outbox.workers AS w
                       WHERE w.beat_at + w.lease >= now())) AS workers,
       (SELECT string_agg(concat_ws(':', r.name, r.relayed, r.trouble), ',' ORDER BY r.name) FROM outbox.relays AS r) AS relays;

-- name: workflows_seen
-- Returns marks of these workflows, each of which differs when something of that workflow has changed.
-- Reads actions, approvals, checkpoints, dead_jobs, effects, jobs, signals, waits, workflow_states. Uses actions_by_workflow,
-- approvals_by_workflow, checkpoints_pkey, dead_jobs_pkey, effects_pkey, jobs_pkey, signals_are_one_by_id, waits_pkey,
-- workflow_states_pkey.
SELECT w.id::text, concat_ws(',', w.version, w.updated_at, j.id, j.attempt, j.owner, j.run_at, d.place, t.children,
       (SELECT max(a.at) FROM outbox.actions AS a WHERE a.workflow_id = w.id),
       (SELECT concat_ws('.', count(*), sum(a.votes), max(a.ended_at)) FROM outbox.approvals AS a WHERE a.workflow_id = w.id),
       (SELECT count(*) FROM outbox.checkpoints AS c WHERE c.workflow_id = w.id),
       (SELECT concat_ws('.', sum(e.calls), max(e.started_at), max(e.ended_at), count(e.error))
        FROM outbox.effects AS e WHERE e.workflow_id = w.id),
       (SELECT concat_ws('.', count(*), count(s.taken_at)) FROM outbox.signals AS s WHERE s.workflow_id = w.id)) AS mark
FROM outbox.workflow_states AS w
LEFT JOIN outbox.jobs AS j ON j.workflow_id = w.id
LEFT JOIN outbox.dead_jobs AS d ON d.workflow_id = w.id
LEFT JOIN outbox.waits AS t ON t.workflow_id = w.id
WHERE w.id = ANY (%(ids)s::uuid[]);

-- name: data_known
-- Returns what is known of a workflow's data at earlier times, latest first: as it was when a question was asked, and as a
-- decision has left it. Large ones are left out. Null where a question or an answer tells nothing of it.
-- Reads approvals. Uses approvals_by_workflow.
SELECT a.asked_at, CASE WHEN pg_column_size(a.data) < %(most)s::integer THEN a.data END AS asked,
       a.ended_at, CASE WHEN pg_column_size(a.edited) < %(most)s::integer THEN a.edited END AS edited, a.own_data
FROM outbox.approvals AS a WHERE a.workflow_id = %(id)s::uuid ORDER BY a.asked_at DESC LIMIT %(limit)s::integer;
