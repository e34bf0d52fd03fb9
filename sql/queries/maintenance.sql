-- What every worker does besides running jobs. All of it may run anywhere, any number of times at once.

-- name: maintenance_look
-- Returns what there is to do, in one query: a worker that has nothing to do asks nothing else. It returns the seconds
-- until the next scheduled job is due, the next deadline passes and the next reminder goes out or question is passed on (null:
-- there is none).
-- It also returns whether parents have ended before their children, or have not moved after them; the watched workers
-- whose session lock is not held, because their process has died or is reconnecting; and whether a lease has run out.
-- With `everything`, which walks over dead rows, it returns whether jobs are held by workers without a row, and whether
-- jobs of these stages are ready.
-- Reads approvals, jobs, orphans, pauses, waits, workers. Uses jobs_scheduled, waits_to_join, jobs_with_deadline,
-- approvals_to_escalate, approvals_to_remind, jobs_running, jobs_ready_for_claim.
SELECT
    (SELECT extract(epoch FROM min(j.run_at) - coalesce(%(now)s::timestamptz, now()))::float8
     FROM outbox.jobs AS j WHERE j.owner IS NULL AND NOT j.due AND j.stage IS NOT NULL) AS due_in,
    (SELECT extract(epoch FROM min(j.deadline) - coalesce(%(now)s::timestamptz, now()))::float8
     FROM outbox.jobs AS j WHERE j.deadline IS NOT NULL) AS deadline_in,
    extract(epoch FROM least(
        (SELECT min(a.remind_at) FROM outbox.approvals AS a WHERE a.ended_at IS NULL AND a.remind_at IS NOT NULL),
        (SELECT min(a.escalate_at) FROM outbox.approvals AS a WHERE a.ended_at IS NULL AND a.escalate_at IS NOT NULL)
    ) - coalesce(%(now)s::timestamptz, now()))::float8 AS remind_in,
    EXISTS (SELECT FROM outbox.orphans) AS orphans,
    EXISTS (SELECT FROM outbox.waits AS w WHERE w.children <= 0) AS parents,
    ARRAY(
        SELECT w.id
        FROM outbox.workers AS w
        WHERE w.watched AND NOT EXISTS (
            SELECT FROM pg_locks AS l
            WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
              AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
              AND l.classid = (hashtext('outbox.worker')::bigint & 4294967295)::oid AND l.objid = w.id::oid)
    ) AS missing,
    EXISTS (SELECT FROM outbox.workers AS w WHERE w.beat_at + w.lease < coalesce(%(now)s::timestamptz, now())) AS late,
    CASE WHEN %(everything)s THEN EXISTS (
        SELECT FROM outbox.jobs AS j
        WHERE j.owner IS NOT NULL AND NOT EXISTS (SELECT FROM outbox.workers AS w WHERE w.id = j.owner)
    ) ELSE false END AS lost,
    CASE WHEN %(everything)s THEN EXISTS (
        SELECT FROM unnest(%(pipelines)s::text[], %(stages)s::text[]) AS q (pipeline, stage)
        CROSS JOIN LATERAL (
            SELECT FROM outbox.jobs AS j
            WHERE j.pipeline = q.pipeline AND j.stage = q.stage AND j.owner IS NULL AND j.due
            LIMIT 1
        ) AS j
        WHERE NOT EXISTS (SELECT FROM outbox.pauses AS p WHERE p.pipeline = q.pipeline AND p.stage = q.stage)
    ) ELSE false END AS ready;

-- name: jobs_promote_due
-- Makes due scheduled jobs ready, oldest first, and wakes workers for them. Returns how many, and the seconds until the
-- next one is due (null: none is scheduled).
-- Writes jobs. Locks jobs only, with SKIP LOCKED. Uses jobs_scheduled, jobs_pkey.
WITH due AS MATERIALIZED (
    SELECT j.workflow_id
    FROM outbox.jobs AS j
    WHERE j.owner IS NULL AND NOT j.due AND j.stage IS NOT NULL AND j.run_at <= coalesce(%(now)s::timestamptz, now())
      AND (%(only)s::uuid[] IS NULL OR j.workflow_id = ANY (%(only)s::uuid[])) AND j.workflow_id <> ALL (%(but)s::uuid[])
    ORDER BY j.run_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), promoted AS (
    -- An array, not a join, here and below: see jobs_claim.
    UPDATE outbox.jobs AS j SET due = true
    WHERE j.workflow_id = ANY (ARRAY(SELECT due.workflow_id FROM due))
    RETURNING j.pipeline, j.stage
)
SELECT count(*),
       (SELECT extract(epoch FROM min(j.run_at) - coalesce(%(now)s::timestamptz, now()))::float8
        FROM outbox.jobs AS j
        WHERE j.owner IS NULL AND NOT j.due AND j.stage IS NOT NULL AND j.run_at > coalesce(%(now)s::timestamptz, now())),
       outbox.wake(array_agg(pipeline), array_agg(stage))
FROM promoted;

-- name: jobs_to_promote
-- Returns the jobs that jobs_promote_due takes.
-- Reads jobs. Uses jobs_scheduled.
SELECT j.workflow_id::text
FROM outbox.jobs AS j
WHERE j.owner IS NULL AND NOT j.due AND j.stage IS NOT NULL AND j.run_at <= coalesce(%(now)s::timestamptz, now())
  AND j.workflow_id <> ALL (%(but)s::uuid[])
ORDER BY j.run_at
LIMIT %(limit)s;

-- name: deadlines_fire
-- Moves workflows whose deadline has passed, oldest first: what their stage does in the meantime no longer counts.
-- Returns how many it looked at, and how many it moved. A deadline must lead to a legal change, which a later deploy
-- may have removed. A transaction that holds the workflow comes first.
-- Reads jobs, legal_changes. Writes workflow_states. Locks the workflow, then the job, with SKIP LOCKED, ids ascending.
-- Uses jobs_with_deadline, legal_changes_pkey, workflow_states_pkey, jobs_pkey.
WITH due AS MATERIALIZED (
    SELECT j.workflow_id, j.id
    FROM outbox.jobs AS j
    WHERE j.deadline <= coalesce(%(now)s::timestamptz, now())
      AND EXISTS (SELECT FROM outbox.legal_changes AS l
                  WHERE l.pipeline = j.pipeline AND l.from_status = j.status AND l.to_status = j.on_deadline)
      AND (%(only)s::uuid[] IS NULL OR j.workflow_id = ANY (%(only)s::uuid[])) AND j.workflow_id <> ALL (%(but)s::uuid[])
    ORDER BY j.deadline
    LIMIT %(limit)s
), workflow AS MATERIALIZED (
    SELECT w.id, d.id AS job
    FROM (SELECT due.workflow_id, due.id FROM due ORDER BY due.workflow_id) AS d
    CROSS JOIN LATERAL (
        SELECT w.id FROM outbox.workflow_states AS w WHERE w.id = d.workflow_id FOR NO KEY UPDATE SKIP LOCKED
    ) AS w
), held AS MATERIALIZED (
    SELECT workflow.id AS workflow_id, j.on_deadline
    FROM workflow
    CROSS JOIN LATERAL (
        -- Written so that the index on deadlines can't serve it: otherwise each job would be sought among all due ones.
        SELECT j.on_deadline FROM outbox.jobs AS j
        WHERE j.workflow_id = workflow.id AND j.id = workflow.job
            AND j.deadline - coalesce(%(now)s::timestamptz, now()) <= interval '0'
        FOR UPDATE
    ) AS j
), me AS MATERIALIZED (
    SELECT set_config('outbox.actor', 'outbox', true), set_config('outbox.reason', 'deadline', true),
           set_config('outbox.decision', '(deadline)', true)
), moved AS (
    UPDATE outbox.workflow_states AS w
    SET current_status = late.statuses[array_position(late.ids, w.id)], version = w.version + 1, updated_at = clock_timestamp()
    -- One row of arrays: planned for one late workflow, a join would look for all of them again for each.
    FROM me, (SELECT array_agg(held.workflow_id) AS ids, array_agg(held.on_deadline) AS statuses FROM held) AS late
    WHERE w.id = ANY (ARRAY(SELECT held.workflow_id FROM held))
    RETURNING w.id
)
SELECT (SELECT count(*) FROM due), (SELECT count(*) FROM moved);

-- name: deadlines_to_fire
-- Returns the workflows that deadlines_fire takes.
-- Reads jobs, legal_changes. Uses jobs_with_deadline, legal_changes_pkey.
SELECT j.workflow_id::text
FROM outbox.jobs AS j
WHERE j.deadline <= coalesce(%(now)s::timestamptz, now())
  AND EXISTS (SELECT FROM outbox.legal_changes AS l
              WHERE l.pipeline = j.pipeline AND l.from_status = j.status AND l.to_status = j.on_deadline)
  AND j.workflow_id <> ALL (%(but)s::uuid[])
ORDER BY j.deadline
LIMIT %(limit)s;

-- name: parents_join
-- Moves parents whose children have all ended and that could not be moved at that time. Returns how many. See the
-- function in sql/functions/children.sql.
-- Reads waits. Writes workflow_states. Locks workflows, with SKIP LOCKED. Uses waits_to_join, workflow_states_pkey.
SELECT outbox.parents_join(%(only)s::uuid[], %(but)s::uuid[], %(limit)s);

-- name: parents_to_join
-- Returns the workflows that parents_join takes.
-- Reads waits. Uses waits_to_join.
SELECT w.workflow_id::text FROM outbox.waits AS w
WHERE w.children <= 0 AND w.workflow_id <> ALL (%(but)s::uuid[])
ORDER BY w.workflow_id
LIMIT %(limit)s;

-- name: orphans_cancel
-- Moves children whose parent has ended before them to the status chosen for their cancellation, if that is a legal
-- change. Returns how many.
-- Reads children, legal_changes, orphans. Writes workflow_states. Locks orphans and workflows, with SKIP LOCKED, ids
-- ascending. Uses children_by_parent, workflow_states_pkey, legal_changes_pkey.
WITH parent AS MATERIALIZED (
    SELECT o.parent_id FROM outbox.orphans AS o ORDER BY o.parent_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), child AS MATERIALIZED (
    SELECT w.id, c.cancel_to
    FROM parent
    JOIN outbox.children AS c ON c.parent_id = parent.parent_id
    JOIN outbox.workflow_states AS w ON w.id = c.child_id
    JOIN outbox.legal_changes AS l
        ON l.pipeline = w.pipeline AND l.from_status = w.current_status AND l.to_status = c.cancel_to
    WHERE (%(only)s::uuid[] IS NULL OR w.id = ANY (%(only)s::uuid[])) AND w.id <> ALL (%(but)s::uuid[])
    ORDER BY w.id
    LIMIT %(limit)s
    FOR NO KEY UPDATE OF w SKIP LOCKED
), me AS MATERIALIZED (
    SELECT set_config('outbox.actor', 'outbox', true), set_config('outbox.reason', 'its parent has ended', true),
           set_config('outbox.decision', '(cancelled)', true)
), moved AS (
    UPDATE outbox.workflow_states AS w
    SET current_status = child.cancel_to, version = w.version + 1, updated_at = clock_timestamp()
    FROM me, child
    WHERE w.id = child.id
    RETURNING w.id
)
SELECT count(*) FROM moved;

-- name: orphans_to_cancel
-- Returns the workflows that orphans_cancel takes.
-- Reads children, legal_changes, orphans, workflow_states. Uses children_by_parent, workflow_states_pkey,
-- legal_changes_pkey.
SELECT w.id::text
FROM outbox.orphans AS o
JOIN outbox.children AS c ON c.parent_id = o.parent_id
JOIN outbox.workflow_states AS w ON w.id = c.child_id
JOIN outbox.legal_changes AS l
    ON l.pipeline = w.pipeline AND l.from_status = w.current_status AND l.to_status = c.cancel_to
WHERE w.id <> ALL (%(but)s::uuid[])
ORDER BY w.id
LIMIT %(limit)s;

-- name: orphans_forget
-- Deletes the rows of parents that have no child left to cancel.
-- Reads children, legal_changes, workflow_states. Writes orphans. Uses children_by_parent, workflow_states_pkey,
-- legal_changes_pkey.
DELETE FROM outbox.orphans AS o
WHERE NOT EXISTS (
    SELECT FROM outbox.children AS c
    JOIN outbox.workflow_states AS w ON w.id = c.child_id
    JOIN outbox.legal_changes AS l
        ON l.pipeline = w.pipeline AND l.from_status = w.current_status AND l.to_status = c.cancel_to
    WHERE c.parent_id = o.parent_id);

-- name: approvals_remind
-- Writes a message for each open question whose reminder is due. Reminders missed while no worker ran become one.
-- Returns how many.
-- Writes approvals, messages. Locks approvals only, with SKIP LOCKED. Uses approvals_to_remind, approvals_pkey.
WITH due AS MATERIALIZED (
    SELECT a.id
    FROM outbox.approvals AS a
    WHERE a.ended_at IS NULL AND a.remind_at <= coalesce(%(now)s::timestamptz, now())
      AND (%(only)s::uuid[] IS NULL OR a.id = ANY (%(only)s::uuid[])) AND a.id <> ALL (%(but)s::uuid[])
    ORDER BY a.remind_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), reminded AS (
    UPDATE outbox.approvals AS a
    SET reminders = a.reminders + 1, remind_at = coalesce(%(now)s::timestamptz, now()) + a.remind_every
    FROM due WHERE a.id = due.id
    RETURNING a.*
), sent AS (
    INSERT INTO outbox.messages (topic, key, payload, workflow_id)
    SELECT r.pipeline || '.approval.reminder', r.entity_id,
           jsonb_build_object('pipeline', r.pipeline, 'entity_id', r.entity_id, 'status', r.status, 'id', r.id, 'question', r.question,
                              'options', (SELECT jsonb_agg(o.key ORDER BY o.key) FROM jsonb_object_keys(r.options) AS o (key)),
                              'assignee', r.assignee, 'asked_at', r.asked_at, 'deadline', r.deadline, 'reminder', r.reminders),
           r.workflow_id
    FROM reminded AS r
)
SELECT count(*) FROM reminded;

-- name: approvals_to_remind
-- Returns the questions that approvals_remind takes.
-- Reads approvals. Uses approvals_to_remind.
SELECT a.id::text
FROM outbox.approvals AS a
WHERE a.ended_at IS NULL AND a.remind_at <= coalesce(%(now)s::timestamptz, now()) AND a.id <> ALL (%(but)s::uuid[])
ORDER BY a.remind_at
LIMIT %(limit)s;

-- name: approvals_escalate
-- Passes open questions on to another assignee when their time has come, and writes a message for each. Returns how many.
-- Writes approvals, messages. Locks approvals only, with SKIP LOCKED. Uses approvals_to_escalate, approvals_pkey.
WITH due AS MATERIALIZED (
    SELECT a.id, a.assignee
    FROM outbox.approvals AS a
    WHERE a.ended_at IS NULL AND a.escalate_at <= coalesce(%(now)s::timestamptz, now())
      AND (%(only)s::uuid[] IS NULL OR a.id = ANY (%(only)s::uuid[])) AND a.id <> ALL (%(but)s::uuid[])
    ORDER BY a.escalate_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), escalated AS (
    UPDATE outbox.approvals AS a
    SET assignee = a.escalate_to, escalate_at = NULL, escalated_at = coalesce(%(now)s::timestamptz, now())
    FROM due WHERE a.id = due.id
    RETURNING a.*, due.assignee AS before
), sent AS (
    INSERT INTO outbox.messages (topic, key, payload, workflow_id)
    SELECT e.pipeline || '.approval.escalated', e.entity_id,
           jsonb_build_object('pipeline', e.pipeline, 'entity_id', e.entity_id, 'status', e.status, 'id', e.id, 'question', e.question,
                              'options', (SELECT jsonb_agg(o.key ORDER BY o.key) FROM jsonb_object_keys(e.options) AS o (key)),
                              'assignee', e.assignee, 'before', e.before, 'asked_at', e.asked_at, 'deadline', e.deadline),
           e.workflow_id
    FROM escalated AS e
)
SELECT count(*) FROM escalated;

-- name: approvals_to_escalate
-- Returns the questions that approvals_escalate takes.
-- Reads approvals. Uses approvals_to_escalate.
SELECT a.id::text
FROM outbox.approvals AS a
WHERE a.ended_at IS NULL AND a.escalate_at <= coalesce(%(now)s::timestamptz, now()) AND a.id <> ALL (%(but)s::uuid[])
ORDER BY a.escalate_at
LIMIT %(limit)s;

-- name: workers_bury
-- Deletes the rows, and so the leases, of workers whose heartbeat is too late by the database's clock, and of the
-- `dead` ones. A worker that was only slow learns it at its next heartbeat.
-- Writes workers. Uses workers_pkey.
DELETE FROM outbox.workers AS w
WHERE w.id = ANY (%(dead)s::integer[])
   OR (%(leases)s AND w.beat_at + w.lease < coalesce(%(now)s::timestamptz, now()))
RETURNING w.id, w.name;

-- name: jobs_sweep
-- Frees jobs whose worker has no row. The attempt stays counted; if it was the last one, the job is dead. A job with
-- one attempt left becomes careful, so that if it kills its worker, it takes no other careful job with it.
-- Reads routes, stages, workers, workflow_states. Writes dead_jobs, jobs. Locks jobs only, with SKIP LOCKED. Uses
-- jobs_running, workers_pkey, stages_pkey, jobs_pkey, routes_pkey.
WITH gone AS MATERIALIZED (
    SELECT DISTINCT j.owner FROM outbox.jobs AS j
    WHERE j.owner IS NOT NULL AND NOT EXISTS (SELECT FROM outbox.workers AS w WHERE w.id = j.owner)
), stale AS MATERIALIZED (
    SELECT j.workflow_id, j.attempt, s.max_attempts
    FROM outbox.jobs AS j
    JOIN gone ON gone.owner = j.owner
    LEFT JOIN outbox.stages AS s ON s.pipeline = j.pipeline AND s.stage = j.stage
    WHERE (%(only)s::uuid[] IS NULL OR j.workflow_id = ANY (%(only)s::uuid[])) AND j.workflow_id <> ALL (%(but)s::uuid[])
    ORDER BY j.id
    LIMIT %(limit)s
    FOR UPDATE OF j SKIP LOCKED
), freed AS (
    UPDATE outbox.jobs AS j
    SET owner = NULL, claimed_at = NULL, released = 0,
        careful = coalesce(j.attempt >= (SELECT s.max_attempts FROM outbox.stages AS s
                                         WHERE s.pipeline = j.pipeline AND s.stage = j.stage) - 1, false),
        error = format('worker %%s was lost during attempt %%s', j.owner, j.attempt),
        -- The data may have changed during the attempt. Jobs of unlimited stages have neither.
        (partition, priority) = (SELECT r.partition, r.priority FROM outbox.workflow_states AS w
                                 CROSS JOIN LATERAL outbox.job_of(w.pipeline, j.status, w.metadata) AS r
                                 WHERE w.id = j.workflow_id AND j.partition IS NOT NULL)
    -- Arrays, not joins, here and below, for the same reason as in deadlines_fire.
    WHERE j.workflow_id = ANY (ARRAY(SELECT stale.workflow_id FROM stale
                                     WHERE stale.attempt < coalesce(stale.max_attempts, stale.attempt + 1)))
    RETURNING j.pipeline, j.stage
), ended AS (
    DELETE FROM outbox.jobs AS j
    WHERE j.workflow_id = ANY (ARRAY(SELECT stale.workflow_id FROM stale WHERE stale.attempt >= stale.max_attempts))
    RETURNING j.workflow_id, j.pipeline, j.stage, j.status, j.entered, j.attempt, j.owner
), dead AS (
    INSERT INTO outbox.dead_jobs (workflow_id, pipeline, entity_id, stage, status, entered, attempts, error)
    SELECT e.workflow_id, e.pipeline, w.entity_id, e.stage, e.status, e.entered, e.attempt,
           format('worker %%s was lost during attempt %%s, the last one', e.owner, e.attempt)
    FROM ended AS e
    JOIN outbox.workflow_states AS w ON w.id = e.workflow_id
    -- A job that was made by hand beside a dead one replaces it.
    ON CONFLICT (workflow_id) DO UPDATE
    SET pipeline = excluded.pipeline, stage = excluded.stage, status = excluded.status, entered = excluded.entered,
        attempts = excluded.attempts, error = excluded.error, died_at = now()
    RETURNING 1
)
SELECT (SELECT count(*) FROM freed), (SELECT count(*) FROM dead),
       (SELECT outbox.wake(array_agg(pipeline), array_agg(stage)) FROM freed);

-- name: jobs_to_sweep
-- Returns the jobs that jobs_sweep takes.
-- Reads jobs, workers. Uses jobs_running, workers_pkey.
SELECT j.workflow_id::text
FROM outbox.jobs AS j
WHERE j.owner IS NOT NULL AND NOT EXISTS (SELECT FROM outbox.workers AS w WHERE w.id = j.owner)
  AND j.workflow_id <> ALL (%(but)s::uuid[])
ORDER BY j.id
LIMIT %(limit)s;

-- name: counts_fold
-- Folds the log of differences into one row for each status, and into the flow of each minute, which is kept for a week.
-- Writes status_counts, status_flow. Locks an advisory lock, against a second folder only. Uses status_flow_pkey.
WITH turn AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock(hashtext('outbox.counts_fold')) AS mine
), folded AS MATERIALIZED (
    DELETE FROM outbox.status_counts AS c USING turn WHERE turn.mine
    RETURNING c.pipeline, c.status, c.workflows, c.came, c.at
), flowed AS (
    INSERT INTO outbox.status_flow AS f (minute, pipeline, status, came, went)
    SELECT date_trunc('minute', folded.at), folded.pipeline, folded.status, sum(folded.came), sum(folded.came - folded.workflows)
    FROM folded WHERE folded.came IS NOT NULL AND folded.at IS NOT NULL GROUP BY 1, 2, 3
    ON CONFLICT (minute, pipeline, status) DO UPDATE SET came = f.came + excluded.came, went = f.went + excluded.went
), old AS (
    DELETE FROM outbox.status_flow AS f USING turn WHERE turn.mine AND f.minute < now() - interval '7 days'
)
INSERT INTO outbox.status_counts (pipeline, status, workflows)
SELECT pipeline, status, sum(workflows) FROM folded GROUP BY pipeline, status HAVING sum(workflows) <> 0;

-- name: deaths_fold
-- Folds the log of dead jobs into one row for each kind of error. What no dead job is left of goes.
-- Writes dead_counts, error_kinds. Locks an advisory lock, against a second folder only. Uses error_kinds_pkey.
WITH turn AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock(hashtext('outbox.deaths_fold')) AS mine
), folded AS (
    DELETE FROM outbox.dead_counts AS c USING turn WHERE turn.mine
    RETURNING c.pipeline, c.stage, c.status, c.kind, c.jobs, c.at
), summed AS MATERIALIZED (
    SELECT f.pipeline, f.stage, f.status, f.kind, sum(f.jobs) AS jobs,
           coalesce(min(f.at) FILTER (WHERE f.jobs > 0), min(f.at)) AS first_at,
           coalesce(max(f.at) FILTER (WHERE f.jobs > 0), '-infinity') AS last_at
    FROM folded AS f GROUP BY f.pipeline, f.stage, f.status, f.kind
), gone AS (
    DELETE FROM outbox.error_kinds AS k USING summed AS s
    WHERE (k.pipeline, k.stage, k.status, k.kind) = (s.pipeline, s.stage, s.status, s.kind) AND k.jobs + s.jobs = 0
), changed AS (
    UPDATE outbox.error_kinds AS k SET jobs = k.jobs + s.jobs, last_at = greatest(k.last_at, s.last_at)
    FROM summed AS s
    WHERE (k.pipeline, k.stage, k.status, k.kind) = (s.pipeline, s.stage, s.status, s.kind) AND k.jobs + s.jobs <> 0
)
INSERT INTO outbox.error_kinds (pipeline, stage, status, kind, jobs, first_at, last_at)
SELECT s.pipeline, s.stage, s.status, s.kind, s.jobs, s.first_at, s.last_at FROM summed AS s
WHERE s.jobs <> 0 AND NOT EXISTS (
    SELECT FROM outbox.error_kinds AS k
    WHERE (k.pipeline, k.stage, k.status, k.kind) = (s.pipeline, s.stage, s.status, s.kind));
