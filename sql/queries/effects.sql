-- The ledger of effects: what an attempt intends, and what has come of it.

-- name: effect_intend
-- Writes the intention to make a call, if this attempt still holds its job, and nothing is known of the effect, or that it
-- has not happened, or, with `repeat`, nothing for certain. Returns whether the job is held, whether the call is to be
-- made, and what was known before. It can be repeated: the id of the call says that the intention is this one.
-- Reads jobs. Writes effects. Locks the job, shared. Uses jobs_pkey, effects_pkey.
WITH held AS MATERIALIZED (
    SELECT j.workflow_id FROM outbox.jobs AS j
    WHERE j.workflow_id = %(id)s::uuid AND j.id = %(job)s AND j.owner = %(worker)s AND j.attempt = %(attempt)s
    FOR SHARE
), made AS (
    INSERT INTO outbox.effects AS e (workflow_id, entered, name, stage, function, call, attempt)
    SELECT held.workflow_id, %(entered)s, %(name)s, %(stage)s, %(function)s, %(call)s::uuid, %(attempt)s FROM held
    ON CONFLICT ON CONSTRAINT effects_pkey DO UPDATE
    SET call = excluded.call, calls = e.calls + 1, attempt = excluded.attempt, stage = excluded.stage, state = 'started',
        error = NULL, known_by = NULL, started_at = clock_timestamp(), ended_at = NULL
    WHERE e.function = excluded.function AND (e.state = 'not done' OR e.state = 'started' AND %(repeat)s::boolean)
      AND e.call <> excluded.call
    RETURNING e.call
)
SELECT EXISTS (SELECT FROM held), EXISTS (SELECT FROM made) OR coalesce(e.call = %(call)s::uuid, false),
       e.call::text, e.state, e.function, e.result::text, e.error, encode(e.blob, 'hex')
FROM (VALUES (1)) AS one (n)
LEFT JOIN outbox.effects AS e ON e.workflow_id = %(id)s::uuid AND e.entered = %(entered)s AND e.name = %(name)s;

-- name: effect_note
-- Writes what has come of a call, if this attempt still holds its job. Returns whether it does, and the result as later
-- attempts read it. It can be repeated.
-- Reads jobs. Writes effects. Locks the job, shared. Uses jobs_pkey, effects_pkey.
WITH held AS MATERIALIZED (
    SELECT j.workflow_id FROM outbox.jobs AS j
    WHERE j.workflow_id = %(id)s::uuid AND j.id = %(job)s AND j.owner = %(worker)s AND j.attempt = %(attempt)s
    FOR SHARE
), noted AS (
    UPDATE outbox.effects AS e
    SET state = %(state)s, result = %(result)s::text::jsonb, blob = decode(%(blob)s::text, 'hex'), error = %(error)s::text,
        known_by = %(known_by)s::text, ended_at = CASE WHEN %(state)s <> 'started' THEN clock_timestamp() END
    FROM held
    WHERE e.workflow_id = held.workflow_id AND e.entered = %(entered)s AND e.name = %(name)s AND e.call = %(call)s::uuid
    RETURNING e.result
)
SELECT EXISTS (SELECT FROM held) AND EXISTS (SELECT FROM noted), (SELECT noted.result::text FROM noted);

-- name: effect_told
-- Returns whether it was a person who said that a call has happened.
-- Reads approvals. Uses approvals_by_workflow.
SELECT EXISTS (SELECT FROM outbox.approvals AS a
               WHERE a.workflow_id = %(id)s::uuid AND a.effect = %(call)s::uuid AND a.decision = 'yes');

-- name: effects_ask
-- Asks people what has become of calls, and parks the job. See the function in sql/functions/effects.sql.
SELECT outbox.effects_ask(%(id)s::uuid, %(job)s::bigint, %(worker)s::integer, %(attempt)s::integer, %(questions)s::jsonb);
