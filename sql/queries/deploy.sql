-- What `outbox deploy` writes for a pipeline, in one transaction.

-- name: deploy_lock
-- Waits for transactions that have changed workflows by the old routes, or have locked one in order to, and keeps new
-- ones out until commit. Readers and claims go on.
-- Locks workflow_states, EXCLUSIVE.
LOCK TABLE outbox.workflow_states IN EXCLUSIVE MODE;

-- name: deploy_unchanged
-- Has the COMMIT wait for standbys, though all is as it should be: it may be so on this server alone.
SELECT outbox.commit_waits();

-- name: pipeline_write
-- Writes a pipeline, in place of the deployed one.
-- Writes pipelines. Uses pipelines_pkey.
INSERT INTO outbox.pipelines (pipeline, initial_status, definition, reaction_of, cancelled, plain, former_names, json_schema,
                              data_version, door)
VALUES (%(pipeline)s, %(initial)s, %(definition)s::text::jsonb, %(reaction_of)s, %(cancelled)s, %(plain)s::integer,
        %(former_names)s::text::jsonb, %(json_schema)s::text::jsonb, %(version)s::integer, %(door)s::text::jsonb)
ON CONFLICT (pipeline) DO UPDATE
SET initial_status = excluded.initial_status, definition = excluded.definition, reaction_of = excluded.reaction_of,
    cancelled = excluded.cancelled, plain = excluded.plain, former_names = excluded.former_names,
    json_schema = excluded.json_schema, data_version = excluded.data_version, door = excluded.door,
    deployed_at = clock_timestamp();

-- name: routes_clear
-- Deletes the routes of a pipeline.
-- Writes routes. Uses routes_pkey.
DELETE FROM outbox.routes AS r WHERE r.pipeline = %(pipeline)s;

-- name: routes_write
-- Writes the routes of a pipeline.
-- Writes routes. Uses routes_pkey.
INSERT INTO outbox.routes (pipeline, status, stage, running, final, deadline, on_deadline, reactions, partition, priority,
                           notify)
SELECT %(pipeline)s, r.status, r.stage, r.running, r.final, make_interval(secs => r.deadline), r.on_deadline,
       string_to_array(nullif(r.reactions, ''), ','),
       CASE WHEN r.partition IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(r.partition::jsonb)) END,
       CASE WHEN r.priority IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(r.priority::jsonb)) END, r.notify
FROM unnest(%(statuses)s::text[], %(stages)s::text[], %(running)s::boolean[], %(final)s::boolean[], %(deadlines)s::float8[],
            %(on_deadline)s::text[], %(reactions)s::text[], %(partitions)s::text[], %(priorities)s::text[],
            %(notify)s::boolean[])
    AS r (status, stage, running, final, deadline, on_deadline, reactions, partition, priority, notify);

-- name: legal_changes_clear
-- Deletes the legal changes of a pipeline.
-- Writes legal_changes. Uses legal_changes_pkey.
DELETE FROM outbox.legal_changes AS l WHERE l.pipeline = %(pipeline)s;

-- name: legal_changes_write
-- Writes the legal changes of a pipeline.
-- Writes legal_changes. Uses legal_changes_pkey.
INSERT INTO outbox.legal_changes (pipeline, from_status, to_status)
SELECT %(pipeline)s, l.from_status, l.to_status
FROM unnest(%(froms)s::text[], %(tos)s::text[]) AS l (from_status, to_status);

-- name: stages_clear
-- Deletes the stages of a pipeline.
-- Writes stages. Uses stages_pkey.
DELETE FROM outbox.stages AS s WHERE s.pipeline = %(pipeline)s;

-- name: stages_write
-- Writes the stages of a pipeline.
-- Writes stages. Uses stages_pkey.
INSERT INTO outbox.stages (pipeline, stage, max_attempts)
SELECT %(pipeline)s, s.stage, s.max_attempts
FROM unnest(%(stages)s::text[], %(max_attempts)s::integer[]) AS s (stage, max_attempts);

-- name: limits_lock
-- Locks the limits of a pipeline before its jobs, as claims do.
-- Reads limits. Locks these rows, in order. Uses limits_pkey.
SELECT l.stage FROM outbox.limits AS l WHERE l.pipeline = %(pipeline)s ORDER BY l.stage FOR UPDATE;

-- name: limits_clear
-- Deletes the limits of all stages but these.
-- Writes limits. Uses limits_pkey.
DELETE FROM outbox.limits AS l WHERE l.pipeline = %(pipeline)s AND l.stage <> ALL (%(stages)s::text[]);

-- name: limits_write
-- Writes the limits of a stage. It keeps the start time and the cursor of the last claims, so that a deploy lets
-- nothing start sooner.
-- Writes limits. Uses limits_pkey.
INSERT INTO outbox.limits AS l (pipeline, stage, concurrency, rate, partition_concurrency, partition_rate, partitioned)
VALUES (%(pipeline)s, %(stage)s, %(concurrency)s::integer, %(rate)s::float8, %(partition_concurrency)s::integer,
        %(partition_rate)s::float8, %(partitioned)s::boolean)
ON CONFLICT (pipeline, stage) DO UPDATE
SET concurrency = excluded.concurrency, rate = excluded.rate, partition_concurrency = excluded.partition_concurrency,
    partition_rate = excluded.partition_rate, partitioned = excluded.partitioned;

-- name: jobs_reorder
-- Sets the partition and priority of jobs by the new routes, for stages whose limits are new or gone, or depend on
-- other fields of the data.
-- Reads routed. Writes jobs. Uses jobs_ready_for_claim, workflow_states_pkey, routes_pkey.
UPDATE outbox.jobs AS j SET partition = r.partition, priority = r.priority
FROM outbox.routed AS r
WHERE j.pipeline = %(pipeline)s AND j.stage = ANY (%(stages)s::text[]) AND r.workflow_id = j.workflow_id AND r.status = j.status;

-- name: questions_end
-- Withdraws the open questions of workflows in a status that a stage takes from now on.
-- Writes approvals. Uses approvals_open.
UPDATE outbox.approvals AS a
SET ended = 'withdrawn', to_status = a.status, decided_by = outbox.actor(), login = session_user, reason = %(reason)s,
    ended_at = clock_timestamp()
WHERE a.pipeline = %(pipeline)s AND a.status = %(status)s AND a.ended_at IS NULL;

-- name: waits_end
-- Ends the waits for signals and children of workflows in a status that a stage takes from now on.
-- Reads workflow_states. Writes waits. Uses workflow_states_pkey.
DELETE FROM outbox.waits AS w
USING outbox.workflow_states AS s
WHERE s.id = w.workflow_id AND s.pipeline = %(pipeline)s AND s.current_status = %(status)s;

-- name: jobs_reroute
-- Gives the jobs in these statuses to the stage that takes them from now on, as new jobs, with the deadlines that run.
-- Where no stage does, the deadline alone remains. Those that have neither are left to jobs_end_rerouted.
-- Reads routes, workflow_states. Writes jobs. Uses routes_pkey, workflow_states_pkey.
UPDATE outbox.jobs AS j
SET id = nextval('outbox.job_ids'), stage = r.stage, attempt = 0, owner = NULL, claimed_at = NULL, careful = false,
    error = NULL, progress = NULL, released = 0, released_by = NULL,
    due = CASE WHEN r.stage IS NULL THEN false WHEN j.due IS NOT NULL THEN true END,  -- null: it waits for an answer, whatever its stage
    run_at = CASE WHEN r.stage IS NULL THEN j.deadline ELSE clock_timestamp() END,
    partition = CASE WHEN r.partition IS NOT NULL THEN outbox.partition_of(w.metadata, r.partition) END,
    priority = CASE WHEN r.partition IS NOT NULL THEN outbox.priority_of(w.metadata, r.priority) END
FROM outbox.routes AS r, outbox.workflow_states AS w
WHERE j.pipeline = %(pipeline)s AND j.status = ANY (%(statuses)s::text[])
  AND r.pipeline = j.pipeline AND r.status = j.status AND r.stage IS DISTINCT FROM j.stage
  AND (r.stage IS NOT NULL OR j.deadline IS NOT NULL) AND w.id = j.workflow_id;

-- name: deadlines_redirect
-- Has the running deadlines of a status lead to where the pipeline's deadline leads now. Where they led before is out of
-- reach.
-- Writes jobs. Uses jobs_with_deadline.
UPDATE outbox.jobs AS j SET on_deadline = %(now)s
WHERE j.pipeline = %(pipeline)s AND j.status = %(status)s AND j.on_deadline = %(before)s AND j.deadline IS NOT NULL;

-- name: jobs_end_rerouted
-- Ends the jobs in statuses that no stage takes from now on, and that have no deadline.
-- Reads routes. Writes jobs. Uses routes_pkey.
DELETE FROM outbox.jobs AS j
USING outbox.routes AS r
WHERE j.pipeline = %(pipeline)s AND j.status = ANY (%(statuses)s::text[])
  AND r.pipeline = j.pipeline AND r.status = j.status AND r.stage IS DISTINCT FROM j.stage;

-- name: dead_jobs_end_rerouted
-- Ends the dead jobs in statuses that another stage takes from now on.
-- Reads routes. Writes dead_jobs. Uses routes_pkey.
DELETE FROM outbox.dead_jobs AS d
USING outbox.routes AS r
WHERE d.pipeline = %(pipeline)s AND d.status = ANY (%(statuses)s::text[])
  AND r.pipeline = d.pipeline AND r.status = d.status AND r.stage IS DISTINCT FROM d.stage;

-- name: jobs_make_rerouted
-- Makes jobs by the new routes for workflows in these statuses that have none.
-- Reads dead_jobs, routed. Writes jobs. Uses workflow_states_entity_key, routes_pkey, jobs_pkey, dead_jobs_pkey.
INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered, deadline, on_deadline, partition, priority)
SELECT r.workflow_id, r.pipeline, r.stage, r.status, r.entered, r.deadline, r.on_deadline, r.partition, r.priority
FROM outbox.routed AS r
WHERE r.pipeline = %(pipeline)s AND r.status = ANY (%(statuses)s::text[]) AND r.stage IS NOT NULL
  AND NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = r.workflow_id)
  AND NOT EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = r.workflow_id);

-- name: resting_end_rerouted
-- Forgets that workflows rest in statuses that a stage takes from now on, or that are final.
-- Reads routes. Writes resting. Uses resting_by_status, routes_pkey.
DELETE FROM outbox.resting AS s
USING outbox.routes AS r
WHERE s.pipeline = %(pipeline)s AND s.status = ANY (%(statuses)s::text[])
  AND r.pipeline = s.pipeline AND r.status = s.status AND (r.stage IS NOT NULL OR r.final);

-- name: resting_make_rerouted
-- Notes the workflows in those of these statuses that no stage takes any more, and that are not final.
-- Reads routes, workflow_states. Writes resting. Uses routes_pkey, workflow_states_entity_key, resting_pkey.
SELECT outbox.rest_begin(array_agg(w.id ORDER BY w.id))
FROM outbox.routes AS r
JOIN outbox.workflow_states AS w ON w.pipeline = r.pipeline AND w.current_status = r.status
WHERE r.pipeline = %(pipeline)s AND r.status = ANY (%(statuses)s::text[]) AND r.stage IS NULL AND NOT r.final
HAVING count(*) > 0;

-- name: schedules_lock
-- Waits for the running ticks of these schedules (null: all), and locks the schedules. This comes before the lock of the table,
-- because a tick may change workflows.
-- Reads schedules. Locks these rows, in order. Uses schedules_pkey.
SELECT s.schedule FROM outbox.schedules AS s
WHERE s.pipeline = %(pipeline)s
  AND (%(schedules)s::text[] IS NULL OR s.schedule = ANY (%(schedules)s::text[]))
ORDER BY s.schedule FOR UPDATE;

-- name: schedules_write
-- Writes those schedules of a pipeline that are new or have changed. One with a changed time starts from its next tick.
-- Writes schedules. Uses schedules_pkey.
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
-- Deletes the schedules of a pipeline except these.
-- Writes schedules. Uses schedules_pkey.
DELETE FROM outbox.schedules AS s WHERE s.pipeline = %(pipeline)s AND s.schedule <> ALL (%(schedules)s::text[]);
