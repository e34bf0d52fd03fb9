-- Step 4: one statement for a batch. It changes nothing for a job that is no longer held.
--
-- The fence is (job, owner, attempt). It includes the job's id because the same worker may now hold another job of the
-- workflow, in an attempt of the same number. IS NOT DISTINCT FROM keeps the planner from the index on owner. If most
-- jobs wait, the planner expects a row or two from that index, and would search for each job of a batch among all of
-- the worker's.

-- name: jobs_finish_if_held
-- Writes the new status, data and messages of jobs that this worker still holds on unchanged data; the trigger adds
-- history, ends the job and makes the next one. Returns the workflows that were still held. With a claim (the mark of a
-- handler's transaction), it commits all of them or raises an error. A workflow that another session has locked is left
-- out, so that it holds up no other; with `wait` the statement waits for it. No wait for a lock is longer than
-- `lock_ms`.
-- Reads jobs. Writes messages, workflow_states. Locks the workflow, then the job, ids ascending. Uses
-- workflow_states_pkey, jobs_pkey.
WITH me AS MATERIALIZED (
    -- For the trigger, and for this transaction only, because a pooler gives the session to other clients. A handler
    -- that has ended its transaction has lost the mark, so nothing is held.
    SELECT set_config('outbox.worker', %(worker)s::integer::text, true), set_config('outbox.actor', %(actor)s, true),
           set_config('outbox.waits', %(waits)s, true), set_config('lock_timeout', %(lock_ms)s::integer::text, true)
    WHERE coalesce(current_setting('outbox.claim', true), '') = %(claim)s
), awaited AS MATERIALIZED (
    SELECT w.id
    FROM me, unnest(CASE WHEN %(wait)s::boolean THEN %(ids)s::uuid[] ELSE '{}' END) AS o (id)
    JOIN outbox.workflow_states AS w ON w.id = o.id
    ORDER BY w.id
    FOR NO KEY UPDATE OF w
), workflow AS MATERIALIZED (
    -- First lock the workflow, in the same order as a change by hand. Its version shows whether there was one.
    SELECT w.id, o.job, o.attempt, o.status, o.data, w.current_status AS was
    FROM me, unnest(%(ids)s::uuid[], %(jobs)s::bigint[], %(attempts)s::integer[], %(versions)s::bigint[],
                    %(statuses)s::text[], %(data)s::text[]) AS o (id, job, attempt, version, status, data)
    JOIN outbox.workflow_states AS w ON w.id = o.id AND w.version = o.version
    WHERE (SELECT count(*) FROM awaited) >= 0  -- locks those first
    ORDER BY w.id
    FOR NO KEY UPDATE OF w SKIP LOCKED
), held AS MATERIALIZED (
    -- Then lock the job, too: after a wait, Postgres reads again only the row that it locks, and would check a
    -- condition on a joined job against the past. Jobs are taken one by one in the order of the workflows, not by a
    -- join: if a queue was empty when it was analyzed, the planner takes it for empty, and a join would walk over its
    -- whole index, including dead entries, to find these few.
    SELECT workflow.id, workflow.status, workflow.data, workflow.was
    FROM workflow
    CROSS JOIN LATERAL (
        SELECT FROM outbox.jobs AS j
        WHERE j.workflow_id = workflow.id
            AND j.id = workflow.job AND j.owner IS NOT DISTINCT FROM %(worker)s::integer AND j.attempt = workflow.attempt
        FOR UPDATE
    ) AS j
), moved AS (
    UPDATE outbox.workflow_states AS w
    SET current_status = held.status, version = w.version + 1, updated_at = clock_timestamp(),
        metadata = CASE WHEN held.data IS NULL THEN w.metadata ELSE held.data::jsonb END
    FROM held
    WHERE w.id = held.id
    RETURNING w.id, w.current_status <> held.was AS gone
), published AS (
    INSERT INTO outbox.messages (topic, key, payload, headers, workflow_id)
    SELECT m.topic, m.key, m.payload::jsonb, m.headers::jsonb, m.workflow_id
    FROM unnest(%(senders)s::uuid[], %(topics)s::text[], %(keys)s::text[], %(payloads)s::text[], %(headers)s::text[])
        WITH ORDINALITY AS m (workflow_id, topic, key, payload, headers, n)
    -- IS TRUE makes this a hashed sub-plan whatever the session's settings. As a join it could become quadratic.
    WHERE (m.workflow_id IN (SELECT held.id FROM held)) IS TRUE
    ORDER BY m.n
)
-- A condition without a column is evaluated once, even if nothing has moved.
SELECT moved.id::text FROM moved
WHERE (SELECT %(claim)s = '' OR outbox.require_held(%(claim)s, cardinality(%(ids)s::uuid[]), count(*)) FROM held)
  AND (SELECT outbox.require_moved((SELECT count(*) FROM held), (SELECT count(*) FROM moved AS m WHERE m.gone)));

-- name: jobs_fail_if_held
-- Puts failed jobs back for later or, where `delays[n]` is null, makes them dead with their error and traceback.
-- Returns those that were still held. A job that another session has locked is left out; with `wait` the statement
-- waits for it, as in jobs_finish_if_held. If a job was made by hand beside a dead one, it replaces the dead one.
-- Reads routes, workflow_states. Writes dead_jobs, jobs. Locks jobs only, ids ascending. Uses jobs_pkey,
-- workflow_states_pkey, dead_jobs_pkey, routes_pkey.
WITH me AS MATERIALIZED (
    SELECT set_config('lock_timeout', %(lock_ms)s::integer::text, true)
), awaited AS MATERIALIZED (
    SELECT o.id
    FROM (SELECT o.id FROM unnest(CASE WHEN %(wait)s::boolean THEN %(ids)s::uuid[] ELSE '{}' END) AS o (id)
          WHERE (SELECT count(*) FROM me) > 0
          ORDER BY o.id) AS o
    -- Not a join: see jobs_finish_if_held.
    CROSS JOIN LATERAL (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = o.id FOR UPDATE) AS j
), held AS MATERIALIZED (
    SELECT j.workflow_id, o.delay, o.in_row, o.error, o.traceback
    FROM (SELECT o.id, o.job, o.attempt, o.delay, o.in_row, o.error, o.traceback
          FROM unnest(%(ids)s::uuid[], %(jobs)s::bigint[], %(attempts)s::integer[], %(delays)s::float8[],
                      %(in_row)s::boolean[], %(errors)s::text[], %(tracebacks)s::text[])
              AS o (id, job, attempt, delay, in_row, error, traceback)
          WHERE (SELECT count(*) FROM me) + (SELECT count(*) FROM awaited) > 0
          ORDER BY o.id) AS o
    CROSS JOIN LATERAL (
        SELECT j.workflow_id FROM outbox.jobs AS j
        WHERE j.workflow_id = o.id
            AND j.id = o.job AND j.owner IS NOT DISTINCT FROM %(worker)s::integer AND j.attempt = o.attempt
        FOR UPDATE SKIP LOCKED
    ) AS j
), later AS (
    UPDATE outbox.jobs AS j
    SET owner = NULL, claimed_at = NULL, careful = false, error = held.error, due = held.delay <= 0,
        run_at = coalesce(%(now)s::timestamptz, now()) + make_interval(secs => held.delay),
        -- An attempt that counts ends a row of put-backs, unless these are why it failed.
        released = CASE WHEN held.in_row THEN j.released ELSE 0 END,
        -- The data may have changed during the attempt. An unlimited job has neither.
        (partition, priority) = (SELECT r.partition, r.priority FROM outbox.workflow_states AS w
                                 CROSS JOIN LATERAL outbox.job_of(w.pipeline, j.status, w.metadata) AS r
                                 WHERE w.id = j.workflow_id AND j.partition IS NOT NULL)
    FROM held
    WHERE j.workflow_id = held.workflow_id AND held.delay IS NOT NULL AND j.workflow_id = ANY (%(ids)s::uuid[])
), ended AS (
    DELETE FROM outbox.jobs AS j
    USING held
    WHERE j.workflow_id = held.workflow_id AND held.delay IS NULL AND j.workflow_id = ANY (%(ids)s::uuid[])
    RETURNING j.workflow_id, j.pipeline, j.stage, j.status, j.entered, j.attempt, held.error, held.traceback
), dead AS (
    INSERT INTO outbox.dead_jobs (workflow_id, pipeline, entity_id, stage, status, entered, attempts, error, traceback)
    SELECT e.workflow_id, e.pipeline, w.entity_id, e.stage, e.status, e.entered, e.attempt, e.error, e.traceback
    FROM ended AS e
    JOIN outbox.workflow_states AS w ON w.id = e.workflow_id
    ON CONFLICT (workflow_id) DO UPDATE
    SET pipeline = excluded.pipeline, stage = excluded.stage, status = excluded.status, entered = excluded.entered,
        attempts = excluded.attempts, error = excluded.error, traceback = excluded.traceback, died_at = now()
)
SELECT held.workflow_id::text FROM held;

-- name: jobs_held
-- Returns which of these jobs this worker still holds, as far as other sessions have committed, and whether their data
-- is unchanged. It is asked of what a batch has left out: what is held was locked by another session; and after a lost
-- connection.
-- Reads jobs, workflow_states. Uses jobs_pkey, workflow_states_pkey.
SELECT o.id::text, w.version = o.version
FROM unnest(%(ids)s::uuid[], %(jobs)s::bigint[], %(attempts)s::integer[], %(versions)s::bigint[])
    AS o (id, job, attempt, version)
CROSS JOIN LATERAL (
    SELECT FROM outbox.jobs AS j
    WHERE j.workflow_id = o.id
        AND j.id = o.job AND j.owner IS NOT DISTINCT FROM %(worker)s::integer AND j.attempt = o.attempt
    OFFSET 0
) AS j
JOIN outbox.workflow_states AS w ON w.id = o.id;

-- name: sessions_blocking
-- Returns the sessions that hold what this one waits for, and since when their transactions are open.
SELECT b.pid, coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, 'state unknown'),
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8
FROM unnest(pg_blocking_pids(%(pid)s)) AS b (pid)
LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
ORDER BY b.pid;

-- name: jobs_give_back
-- Releases jobs that this worker holds and did not run. Their attempts aren't counted. A job that another session has
-- locked is left out.
-- Reads routes, workflow_states. Writes jobs. Locks jobs only, with SKIP LOCKED, ids ascending. Uses jobs_pkey,
-- workflow_states_pkey, routes_pkey.
WITH held AS MATERIALIZED (
    SELECT j.workflow_id
    FROM (SELECT o.id, o.job, o.attempt
          FROM unnest(%(ids)s::uuid[], %(jobs)s::bigint[], %(attempts)s::integer[]) AS o (id, job, attempt)
          ORDER BY o.id) AS o
    CROSS JOIN LATERAL (
        SELECT j.workflow_id FROM outbox.jobs AS j
        WHERE j.workflow_id = o.id
            AND j.id = o.job AND j.owner IS NOT DISTINCT FROM %(worker)s::integer AND j.attempt = o.attempt
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS j
)
UPDATE outbox.jobs AS j
SET owner = NULL, claimed_at = NULL, attempt = j.attempt - 1,
    (partition, priority) = (SELECT r.partition, r.priority FROM outbox.workflow_states AS w
                             CROSS JOIN LATERAL outbox.job_of(w.pipeline, j.status, w.metadata) AS r
                             WHERE w.id = j.workflow_id AND j.partition IS NOT NULL)
WHERE j.workflow_id = ANY (ARRAY(SELECT held.workflow_id FROM held))
RETURNING j.workflow_id::text;

-- name: jobs_put_back
-- Puts back jobs that this worker holds and whose attempt came to nothing through no fault of the handler: no attempt is
-- counted, but the put-back is, and each one waits twice as long as the one before: after the first, which waits for
-- `first` seconds, `next` and more, up to `longest`. With `avoid` other workers have the first try. Returns the jobs that
-- were still held with their delay; null: that was `most` times, and the job is held as before. So is one that, with
-- `if_routed`, no deployed stage of its name takes: the third column says so.
-- Reads routes, workflow_states. Writes jobs. Locks jobs only, with SKIP LOCKED, ids ascending. Uses jobs_pkey,
-- workflow_states_pkey, routes_pkey.
WITH held AS MATERIALIZED (
    SELECT j.workflow_id, CASE WHEN j.released = 0 THEN %(first)s::float8
                               ELSE least(%(next)s::float8 * 2 ^ least(j.released - 1, 30), %(longest)s::float8) END AS delay,
           j.released >= %(most)s::integer AS often,
           %(if_routed)s::boolean AND NOT EXISTS (
               SELECT FROM outbox.workflow_states AS w
               JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
               WHERE w.id = j.workflow_id AND r.pipeline = j.pipeline AND r.stage = j.stage) AS unrouted
    FROM (SELECT o.id, o.job, o.attempt
          FROM unnest(%(ids)s::uuid[], %(jobs)s::bigint[], %(attempts)s::integer[]) AS o (id, job, attempt)
          ORDER BY o.id) AS o
    CROSS JOIN LATERAL (
        SELECT j.workflow_id, j.pipeline, j.stage, j.released FROM outbox.jobs AS j
        WHERE j.workflow_id = o.id
            AND j.id = o.job AND j.owner IS NOT DISTINCT FROM %(worker)s::integer AND j.attempt = o.attempt
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS j
), later AS (
    UPDATE outbox.jobs AS j
    SET owner = NULL, claimed_at = NULL, attempt = j.attempt - 1, released = j.released + 1,
        released_by = CASE WHEN %(avoid)s::boolean THEN %(worker)s::integer END, error = %(reason)s::text,
        due = held.delay <= 0, run_at = now() + make_interval(secs => held.delay),
        (partition, priority) = (SELECT r.partition, r.priority FROM outbox.workflow_states AS w
                                 CROSS JOIN LATERAL outbox.job_of(w.pipeline, j.status, w.metadata) AS r
                                 WHERE w.id = j.workflow_id AND j.partition IS NOT NULL)
    FROM held
    WHERE j.workflow_id = held.workflow_id AND NOT held.often AND NOT held.unrouted
      AND j.workflow_id = ANY (%(ids)s::uuid[])
)
SELECT held.workflow_id::text, CASE WHEN NOT held.often AND NOT held.unrouted THEN held.delay END, held.unrouted FROM held;

-- name: start_times_return
-- Gives back the start times of jobs of one stage that were released without being started. See the function in
-- sql/functions/limits.sql.
-- Reads jobs. Writes limits, partition_rates. Locks the stage's row in limits. Uses limits_pkey, jobs_pkey,
-- partition_rates_pkey.
SELECT outbox.start_times_return(%(pipeline)s, %(stage)s, %(ids)s::uuid[], %(start_times)s::float8[], %(slack)s::float8);

-- name: jobs_finished_by
-- Returns which of these (workflow, version, attempt) are in the history as this worker's change, for when the answer
-- to a commit was lost.
-- Reads state_changes. Uses state_changes_pkey.
SELECT c.workflow_id::text
FROM unnest(%(ids)s::uuid[], %(attempts)s::integer[], %(versions)s::bigint[]) AS o (id, attempt, version)
JOIN outbox.state_changes AS c
    ON c.workflow_id = o.id AND c.version = o.version + 1 AND c.attempt = o.attempt AND c.actor = %(actor)s;

-- name: workflow_unchanged
-- Returns the version if it is still the same. It is asked when a handler's transaction was refused: if the workflow is
-- unchanged, the handler itself was the cause.
-- Reads workflow_states. Uses workflow_states_pkey.
SELECT w.version FROM outbox.workflow_states AS w WHERE w.id = %(id)s::uuid AND w.version = %(version)s;

-- name: transaction_mark
-- Marks the transaction that a handler is given as the attempt's own, and limits how long it may be idle. The
-- session has the user's search_path. Returns, last, whether other handlers may take turns in it: with any other
-- isolation they would not see what was committed since it began.
SELECT pg_catalog.set_config('outbox.claim', %(claim)s, true),
       pg_catalog.set_config('outbox.actor', %(actor)s, true),
       pg_catalog.set_config('outbox.worker', %(worker)s::integer::text, true),
       pg_catalog.set_config('idle_in_transaction_session_timeout', %(idle_ms)s::text, true),
       pg_catalog.current_setting('transaction_isolation');

-- name: turn_opens
-- Puts the session back as the next handler would find it alone, marks the transaction again, and bounds the waits for
-- locks, before the savepoint of the handler's turn. The role comes first, because that of the handler before may have no
-- rights here. Its settings last until the COMMIT, so no turn needs what the one before has set.
RESET ROLE;
SELECT outbox.session_clean(%(names)s::text[], %(values)s::text[]),
       pg_catalog.set_config('outbox.claim', %(claim)s, true),
       pg_catalog.set_config('outbox.actor', %(actor)s, true),
       pg_catalog.set_config('outbox.worker', %(worker)s::integer::text, true),
       pg_catalog.set_config('idle_in_transaction_session_timeout', %(idle_ms)s::text, true),
       pg_catalog.set_config('lock_timeout', %(lock_ms)s::integer::text, true);
SAVEPOINT outbox_turn;
