-- Reads how a pipeline is deployed.

-- name: pipeline_read
-- Returns the pipeline as it is deployed.
-- Reads pipelines. Uses pipelines_pkey.
SELECT p.initial_status, p.cancelled, p.plain, p.former_names::text, p.json_schema::text, p.data_version,
       p.door::text
FROM outbox.pipelines AS p WHERE p.pipeline = %(pipeline)s;

-- name: routes_read
-- Returns the deployed routes of a pipeline.
-- Reads routes. Uses routes_pkey.
SELECT r.status, r.stage, r.running, r.final, extract(epoch FROM r.deadline)::float8, r.on_deadline, r.notify,
       coalesce(r.reactions, '{}'), r.partition, r.priority
FROM outbox.routes AS r WHERE r.pipeline = %(pipeline)s;

-- name: legal_changes_read
-- Returns the deployed legal changes of a pipeline.
-- Reads legal_changes. Uses legal_changes_pkey.
SELECT l.from_status, l.to_status FROM outbox.legal_changes AS l WHERE l.pipeline = %(pipeline)s;

-- name: stages_read
-- Returns the deployed stages of a pipeline.
-- Reads stages. Uses stages_pkey.
SELECT s.stage, s.max_attempts FROM outbox.stages AS s WHERE s.pipeline = %(pipeline)s;

-- name: limits_read
-- Returns the limits of a pipeline's stages.
-- Reads limits. Uses limits_pkey.
SELECT l.stage, l.concurrency, l.rate, l.partition_concurrency, l.partition_rate
FROM outbox.limits AS l WHERE l.pipeline = %(pipeline)s;

-- name: schedules_read
-- Returns the deployed schedules of a pipeline.
-- Reads schedules. Uses schedules_pkey.
SELECT s.schedule, s.cron, s.timezone, s.catch_up FROM outbox.schedules AS s WHERE s.pipeline = %(pipeline)s;
