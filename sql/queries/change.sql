-- Changes that a person makes: set a status, retry, pause, resume, forget a relay.

-- name: change_mark
-- Sets who makes the changes of this transaction, and why. Its COMMIT waits for standbys, also if there is no change.
SELECT set_config('outbox.actor', %(actor)s, true), set_config('outbox.reason', coalesce(%(reason)s, ''), true),
       outbox.commit_waits();

-- name: answer_waits
-- Has the COMMIT wait for standbys, though nothing was left to change: it may be so on this server alone.
SELECT outbox.commit_waits();

-- name: status_set
-- Changes a workflow's status, and returns its new version; no row if it already has that status. The trigger checks
-- the change and does the rest.
-- Writes workflow_states. Locks the workflow. Uses workflow_states_pkey.
UPDATE outbox.workflow_states AS w SET current_status = %(status)s
WHERE w.id = %(id)s AND w.current_status <> %(status)s
RETURNING w.version;

-- name: stages_named
-- Returns the deployed stages of any pipeline with this name, "enrich" or "posts.enrich".
-- Reads stages.
SELECT s.pipeline, s.stage FROM outbox.stages AS s
WHERE (s.stage = %(stage)s OR s.pipeline || '.' || s.stage = %(stage)s)
  AND (%(pipeline)s::text IS NULL OR s.pipeline = %(pipeline)s)
ORDER BY s.pipeline;

-- name: stage_pause
-- Pauses a stage; no row if it is already paused.
-- Writes pauses. Uses pauses_pkey.
INSERT INTO outbox.pauses (pipeline, stage, paused_by, reason) VALUES (%(pipeline)s, %(stage)s, %(by)s, %(reason)s)
ON CONFLICT (pipeline, stage) DO NOTHING RETURNING stage;

-- name: stage_resume
-- Resumes a stage; no row if it is not paused.
-- Writes pauses. Uses pauses_pkey.
DELETE FROM outbox.pauses AS p WHERE p.pipeline = %(pipeline)s AND p.stage = %(stage)s RETURNING p.stage;

-- name: retry_candidates
-- Returns workflows with dead jobs in the order of ids, starting after a given id: outbox retry takes them in batches.
-- Reads dead_jobs. Uses dead_jobs_pkey.
SELECT d.workflow_id FROM outbox.dead_jobs AS d
WHERE d.workflow_id > %(after)s AND (%(pipeline)s::text IS NULL OR d.pipeline = %(pipeline)s)
ORDER BY d.workflow_id LIMIT %(limit)s;

-- name: jobs_retry
-- Makes new jobs for workflows that have none, and returns how many. See the function in sql/functions/jobs.sql.
-- Reads workflow_states. Writes dead_jobs, jobs. Locks workflows, ids ascending, and an advisory lock, shared. Uses
-- workflow_states_pkey, dead_jobs_pkey, jobs_pkey.
SELECT outbox.retry(%(ids)s::uuid[]);

-- name: relay_forget
-- Removes a relay's name and what it has parked, so that nothing is kept for it any more; a running relay stays.
-- Returns whether it existed, whether it was removed, and how many messages were parked.
-- Writes parked_messages, relays. Uses relays_pkey, parked_messages_pkey.
WITH found AS (
    SELECT r.name FROM outbox.relays AS r WHERE r.name = %(relay)s
), gone AS (
    DELETE FROM outbox.relays AS r
    WHERE r.name = %(relay)s AND (r.owner IS NULL OR r.updated_at < now() - interval '15 seconds')
    RETURNING r.name
), parked AS (
    DELETE FROM outbox.parked_messages AS p USING gone WHERE p.relay = gone.name RETURNING p.id
)
SELECT EXISTS (SELECT FROM found) AS found, EXISTS (SELECT FROM gone) AS gone, (SELECT count(*) FROM parked) AS parked;

-- name: parked_retry
-- Marks parked messages and deliveries for a retry by the relay or consumer that parked them: those with these ids, or
-- (null) all. Returns all those with the ids; for all, only those not marked before. A row that is already marked is
-- left alone, because its relay or consumer may be retrying it.
-- Writes parked_deliveries, parked_messages. Uses parked_messages_pkey, parked_deliveries_pkey.
WITH found AS (
    SELECT p.relay, NULL AS consumer, p.id, p.retry
    FROM outbox.parked_messages AS p
    WHERE %(consumer)s::text IS NULL AND (%(relay)s::text IS NULL OR p.relay = %(relay)s)
    UNION ALL
    SELECT NULL, d.consumer, d.id, d.retry
    FROM outbox.parked_deliveries AS d
    WHERE %(relay)s::text IS NULL AND (%(consumer)s::text IS NULL OR d.consumer = %(consumer)s)
), chosen AS MATERIALIZED (
    SELECT f.relay, f.consumer, f.id
    FROM found AS f
    WHERE CASE WHEN %(ids)s::bigint[] IS NULL THEN NOT f.retry ELSE f.id = ANY (%(ids)s::bigint[]) END
), messages AS (
    UPDATE outbox.parked_messages AS p SET retry = true
    FROM chosen AS c WHERE p.relay = c.relay AND p.id = c.id AND NOT p.retry
), deliveries AS (
    UPDATE outbox.parked_deliveries AS d SET retry = true
    FROM chosen AS c WHERE d.consumer = c.consumer AND d.id = c.id AND NOT d.retry
)
SELECT c.relay, c.consumer, c.id FROM chosen AS c ORDER BY c.id, c.consumer NULLS FIRST, c.relay;
