-- How many workflows and jobs are where.

-- name: overview
-- Returns the overview, and whether a live worker serves each stage.
-- Reads overview, workers.
SELECT o.pipeline, o.status, o.stage, o.workflows, o.ready, o.scheduled, o.running, o.dead,
       extract(epoch FROM o.oldest_waiting)::float8, o.paused,
       o.stage IS NULL OR EXISTS (
           SELECT FROM outbox.workers AS w
           WHERE o.pipeline || '.' || o.stage = ANY (w.stages) AND w.beat_at + w.lease >= now())
FROM outbox.overview AS o
WHERE %(pipeline)s::text IS NULL OR o.pipeline = %(pipeline)s
ORDER BY o.pipeline, o.status;

-- name: flows
-- Returns the changes that each pipeline allows, where it starts, and which of its statuses are final.
-- Reads legal_changes, pipelines, routes. Uses legal_changes_pkey, routes_pkey.
SELECT p.pipeline, p.initial_status,
       coalesce((SELECT jsonb_agg(jsonb_build_array(l.from_status, l.to_status)) FROM outbox.legal_changes AS l
                 WHERE l.pipeline = p.pipeline), '[]')::text,
       coalesce((SELECT jsonb_object_agg(r.status, r.final) FROM outbox.routes AS r WHERE r.pipeline = p.pipeline), '{}')::text
FROM outbox.pipelines AS p
WHERE %(pipeline)s::text IS NULL OR p.pipeline = %(pipeline)s;
