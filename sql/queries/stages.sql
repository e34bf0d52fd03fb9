-- Stages that a person pauses and resumes.

-- name: stages_named
-- Returns the deployed stages of any pipeline, or of one, with this name: "enrich" or "posts.enrich".
-- Reads stages.
SELECT s.pipeline, s.stage FROM outbox.stages AS s
WHERE (s.stage = %(stage)s OR s.pipeline || '.' || s.stage = %(stage)s)
  AND (%(pipeline)s::text IS NULL OR s.pipeline = %(pipeline)s)
ORDER BY s.pipeline;

-- name: stage_nearest
-- Returns the stage that a name probably means; null if none is like it.
-- Reads stages.
SELECT outbox.nearest(%(stage)s::text, array_agg(
    CASE WHEN %(stage)s::text LIKE '%%.%%' THEN s.pipeline || '.' || s.stage ELSE s.stage END))
FROM outbox.stages AS s
WHERE %(pipeline)s::text IS NULL OR s.pipeline = %(pipeline)s::text;

-- name: stage_pause
-- Pauses a stage. Returns false if it is already paused. See the function in sql/functions/calls.sql.
-- Writes actions, pauses. Uses pauses_pkey.
SELECT outbox.pause(%(pipeline)s, %(stage)s, %(by)s, %(reason)s);

-- name: stage_resume
-- Resumes a stage. Returns false if it is not paused. See the function in sql/functions/calls.sql.
-- Writes actions, pauses. Uses pauses_pkey.
SELECT outbox.resume(%(pipeline)s, %(stage)s, %(by)s, %(reason)s);
