-- What `outbox deploy` writes of a pipeline, in one transaction.

-- name: deploy_turn
-- Waits for who makes jobs anew by the old routes (outbox retry), and for another deploy. Before the lock of the table: they
-- wait for rows, and whoever holds these must be able to go on.
SELECT pg_advisory_xact_lock(hashtext('outbox.deploy'));

-- name: deploy_lock
-- Waits for the transactions that have changed workflows by the old routes, and keeps new ones out until commit.
-- Readers and claims go on.
LOCK TABLE outbox.workflow_states IN SHARE ROW EXCLUSIVE MODE;

-- name: pipeline_read
SELECT p.initial_status, p.definition FROM outbox.pipelines AS p WHERE p.pipeline = %(pipeline)s;

-- name: routes_read
SELECT r.status, r.stage, r.running, r.final, extract(epoch FROM r.deadline)::float8, r.on_deadline,
       coalesce(r.reactions, '{}'), r.partition, r.priority
FROM outbox.routes AS r WHERE r.pipeline = %(pipeline)s;

-- name: legal_changes_read
SELECT l.from_status, l.to_status FROM outbox.legal_changes AS l WHERE l.pipeline = %(pipeline)s;

-- name: stages_read
SELECT s.stage, s.max_attempts FROM outbox.stages AS s WHERE s.pipeline = %(pipeline)s;

-- name: workflows_in_statuses
-- How many workflows stand in statuses that would be unknown. Counted in the table itself, not in the counters.
SELECT w.current_status, count(*)
FROM outbox.workflow_states AS w
WHERE w.pipeline = %(pipeline)s AND w.current_status = ANY (%(statuses)s::text[])
GROUP BY w.current_status;

-- name: pipeline_write
INSERT INTO outbox.pipelines (pipeline, initial_status, definition, reaction_of)
VALUES (%(pipeline)s, %(initial)s, %(definition)s::text::jsonb, %(reaction_of)s)
ON CONFLICT (pipeline) DO UPDATE
SET initial_status = excluded.initial_status, definition = excluded.definition, reaction_of = excluded.reaction_of,
    deployed_at = now();

-- name: routes_clear
DELETE FROM outbox.routes AS r WHERE r.pipeline = %(pipeline)s;

-- name: routes_write
INSERT INTO outbox.routes (pipeline, status, stage, running, final, deadline, on_deadline, reactions, partition, priority)
SELECT %(pipeline)s, r.status, r.stage, r.running, r.final, make_interval(secs => r.deadline), r.on_deadline,
       string_to_array(nullif(r.reactions, ''), ','),
       CASE WHEN r.partition IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(r.partition::jsonb)) END,
       CASE WHEN r.priority IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(r.priority::jsonb)) END
FROM unnest(%(statuses)s::text[], %(stages)s::text[], %(running)s::boolean[], %(final)s::boolean[], %(deadlines)s::float8[],
            %(on_deadline)s::text[], %(reactions)s::text[], %(partitions)s::text[], %(priorities)s::text[])
    AS r (status, stage, running, final, deadline, on_deadline, reactions, partition, priority);

-- name: legal_changes_clear
DELETE FROM outbox.legal_changes AS l WHERE l.pipeline = %(pipeline)s;

-- name: legal_changes_write
INSERT INTO outbox.legal_changes (pipeline, from_status, to_status)
SELECT %(pipeline)s, l.from_status, l.to_status
FROM unnest(%(froms)s::text[], %(tos)s::text[]) AS l (from_status, to_status);

-- name: stages_clear
DELETE FROM outbox.stages AS s WHERE s.pipeline = %(pipeline)s;

-- name: stages_write
INSERT INTO outbox.stages (pipeline, stage, max_attempts)
SELECT %(pipeline)s, s.stage, s.max_attempts
FROM unnest(%(stages)s::text[], %(max_attempts)s::integer[]) AS s (stage, max_attempts);

-- name: limits_read
SELECT l.stage, l.concurrency, l.rate, l.partition_concurrency, l.partition_rate
FROM outbox.limits AS l WHERE l.pipeline = %(pipeline)s;

-- name: limits_lock
-- In the order of claims, which lock these rows before jobs.
SELECT FROM outbox.limits AS l WHERE l.pipeline = %(pipeline)s ORDER BY l.stage FOR UPDATE;

-- name: limits_clear
DELETE FROM outbox.limits AS l WHERE l.pipeline = %(pipeline)s AND l.stage <> ALL (%(stages)s::text[]);

-- name: limits_write
-- What it remembers of the last claims stays: a deploy lets nothing begin sooner.
INSERT INTO outbox.limits AS l (pipeline, stage, concurrency, rate, partition_concurrency, partition_rate, partitioned)
VALUES (%(pipeline)s, %(stage)s, %(concurrency)s, %(rate)s, %(partition_concurrency)s, %(partition_rate)s, %(partitioned)s)
ON CONFLICT (pipeline, stage) DO UPDATE
SET concurrency = excluded.concurrency, rate = excluded.rate, partition_concurrency = excluded.partition_concurrency,
    partition_rate = excluded.partition_rate, partitioned = excluded.partitioned;

-- name: jobs_order_anew
-- Gives the jobs of stages whose limits are new, gone, or by other fields of the data, their place in the new order.
UPDATE outbox.jobs AS j SET partition = r.partition, priority = r.priority
FROM outbox.routed AS r
WHERE j.pipeline = %(pipeline)s AND j.stage = ANY (%(stages)s::text[]) AND r.workflow_id = j.workflow_id AND r.status = j.status;

-- name: jobs_end_rerouted
-- A status that another stage takes from now on: the jobs of the old one end, and those of the new one are made.
DELETE FROM outbox.jobs AS j
USING outbox.routes AS r
WHERE j.pipeline = %(pipeline)s AND j.status = ANY (%(statuses)s::text[])
  AND r.pipeline = j.pipeline AND r.status = j.status AND r.stage IS DISTINCT FROM j.stage;

-- name: dead_jobs_end_rerouted
DELETE FROM outbox.dead_jobs AS d
USING outbox.routes AS r
WHERE d.pipeline = %(pipeline)s AND d.status = ANY (%(statuses)s::text[])
  AND r.pipeline = d.pipeline AND r.status = d.status AND r.stage IS DISTINCT FROM d.stage;

-- name: jobs_make_rerouted
INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered, deadline, on_deadline, partition, priority)
SELECT r.workflow_id, r.pipeline, r.stage, r.status, r.entered, r.deadline, r.on_deadline, r.partition, r.priority
FROM outbox.routed AS r
WHERE r.pipeline = %(pipeline)s AND r.status = ANY (%(statuses)s::text[]) AND r.stage IS NOT NULL
  AND NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = r.workflow_id)
  AND NOT EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = r.workflow_id);

-- name: schedules_read
SELECT s.schedule, s.cron, s.timezone, s.catch_up FROM outbox.schedules AS s WHERE s.pipeline = %(pipeline)s;

-- name: schedules_write
-- What is new or has another time begins anew; what is unchanged keeps its place.
INSERT INTO outbox.schedules (pipeline, schedule, cron, timezone, catch_up, next_at)
SELECT %(pipeline)s, n.schedule, n.cron, n.timezone, n.catch_up, n.next_at
FROM unnest(%(schedules)s::text[], %(crons)s::text[], %(timezones)s::text[], %(catch_up)s::boolean[], %(next)s::timestamptz[])
    AS n (schedule, cron, timezone, catch_up, next_at)
ON CONFLICT (pipeline, schedule) DO UPDATE
SET cron = excluded.cron, timezone = excluded.timezone, catch_up = excluded.catch_up, attempts = 0, retry_at = NULL,
    error = NULL,
    next_at = CASE WHEN (schedules.cron, schedules.timezone) = (excluded.cron, excluded.timezone)
                   THEN schedules.next_at ELSE excluded.next_at END;

-- name: schedules_clear
DELETE FROM outbox.schedules AS s WHERE s.pipeline = %(pipeline)s AND s.schedule <> ALL (%(schedules)s::text[]);
