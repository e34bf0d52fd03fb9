-- Deletes what has ended and is old, where that is wanted.

-- name: retention_workflows
-- Deletes workflows that ended more than `days` ago, with their history. Returns how many. A child stays until its
-- parent has ended: the parent's wait ends by how its children ended, and then the parent reads their results. A parent
-- stays until the children that its end cancels are cancelled, because they are found by it.
-- Reads children, orphans, routes. Writes actions, state_changes, workflow_states. Locks workflows, with SKIP LOCKED. Uses
-- workflow_states_pkey, actions_by_workflow, state_changes_pkey, children_pkey, orphans_pkey, routes_pkey.
WITH old AS MATERIALIZED (
    SELECT w.id
    FROM outbox.workflow_states AS w
    JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status AND r.final
    WHERE w.updated_at < now() - make_interval(secs => %(days)s::float8 * 86400)
      AND NOT EXISTS (
          SELECT FROM outbox.children AS c
          JOIN outbox.workflow_states AS parent ON parent.id = c.parent_id
          LEFT JOIN outbox.routes AS p ON p.pipeline = parent.pipeline AND p.status = parent.current_status
          WHERE c.child_id = w.id AND p.final IS NOT TRUE)
      AND NOT EXISTS (SELECT FROM outbox.orphans AS o WHERE o.parent_id = w.id)
      AND (%(only)s::uuid[] IS NULL OR w.id = ANY (%(only)s::uuid[])) AND w.id <> ALL (%(but)s::uuid[])
    LIMIT %(limit)s
    FOR UPDATE OF w SKIP LOCKED
), history AS (
    DELETE FROM outbox.state_changes AS c USING old WHERE c.workflow_id = old.id
), actions AS (
    DELETE FROM outbox.actions AS a USING old WHERE a.workflow_id = old.id
), deleted AS (
    DELETE FROM outbox.workflow_states AS w USING old WHERE w.id = old.id RETURNING 1
)
SELECT count(*) FROM deleted;

-- name: workflows_to_delete
-- Returns the workflows that retention_workflows takes.
-- Reads children, orphans, routes, workflow_states.
SELECT w.id::text
FROM outbox.workflow_states AS w
JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status AND r.final
WHERE w.updated_at < now() - make_interval(secs => %(days)s::float8 * 86400)
  AND NOT EXISTS (
      SELECT FROM outbox.children AS c
      JOIN outbox.workflow_states AS parent ON parent.id = c.parent_id
      LEFT JOIN outbox.routes AS p ON p.pipeline = parent.pipeline AND p.status = parent.current_status
      WHERE c.child_id = w.id AND p.final IS NOT TRUE)
  AND NOT EXISTS (SELECT FROM outbox.orphans AS o WHERE o.parent_id = w.id)
  AND w.id <> ALL (%(but)s::uuid[])
LIMIT %(limit)s;

-- name: retention_history
-- Deletes history and actions older than `days`, also those of open workflows. Returns how many rows of history.
-- Writes actions, state_changes. Locks history, with SKIP LOCKED. Uses state_changes_by_time, state_changes_pkey,
-- actions_by_time.
WITH old AS MATERIALIZED (
    SELECT c.workflow_id, c.version
    FROM outbox.state_changes AS c
    WHERE c.at < now() - make_interval(secs => %(days)s::float8 * 86400)
      AND (%(only)s::bigint[] IS NULL OR c.id = ANY (%(only)s::bigint[])) AND c.id <> ALL (%(but)s::bigint[])
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM outbox.state_changes AS c USING old
    WHERE c.workflow_id = old.workflow_id AND c.version = old.version RETURNING 1
), actions AS (
    DELETE FROM outbox.actions AS a
    WHERE a.id IN (SELECT a.id FROM outbox.actions AS a
                   WHERE a.at < now() - make_interval(secs => %(days)s::float8 * 86400) LIMIT %(limit)s)
)
SELECT count(*) FROM deleted;

-- name: history_to_delete
-- Returns the rows of history that retention_history takes.
-- Reads state_changes. Uses state_changes_by_time.
SELECT c.id::text
FROM outbox.state_changes AS c
WHERE c.at < now() - make_interval(secs => %(days)s::float8 * 86400) AND c.id <> ALL (%(but)s::bigint[])
LIMIT %(limit)s;

-- name: retention_checkpoints
-- Deletes results that no attempt will ask for any more, because their work is done or was given up. Returns how many.
-- Results of the last hour stay, so that each is looked at only a few times.
-- Reads dead_jobs, jobs. Writes checkpoints. Locks checkpoints, with SKIP LOCKED. Uses checkpoints_by_time,
-- checkpoints_pkey, jobs_pkey, dead_jobs_pkey.
WITH old AS MATERIALIZED (
    SELECT c.workflow_id, c.entered, c.stage, c.key
    FROM outbox.checkpoints AS c
    WHERE c.made_at < now() - make_interval(secs => 3600 + %(days)s::float8 * 86400)
      AND NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = c.workflow_id AND j.entered = c.entered)
      AND NOT EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = c.workflow_id AND d.entered = c.entered)
      AND (%(only)s::text[] IS NULL OR jsonb_build_array(c.workflow_id, c.entered, c.stage, c.key)::text = ANY (%(only)s::text[]))
      AND jsonb_build_array(c.workflow_id, c.entered, c.stage, c.key)::text <> ALL (%(but)s::text[])
    LIMIT %(limit)s
    FOR UPDATE OF c SKIP LOCKED
), deleted AS (
    DELETE FROM outbox.checkpoints AS c USING old
    WHERE c.workflow_id = old.workflow_id AND c.entered = old.entered AND c.stage = old.stage AND c.key = old.key
    RETURNING 1
)
SELECT count(*) FROM deleted;

-- name: checkpoints_to_delete
-- Returns the results that retention_checkpoints takes, each as the JSON array of its key.
-- Reads checkpoints, dead_jobs, jobs. Uses checkpoints_by_time, jobs_pkey, dead_jobs_pkey.
SELECT jsonb_build_array(c.workflow_id, c.entered, c.stage, c.key)::text
FROM outbox.checkpoints AS c
WHERE c.made_at < now() - make_interval(secs => 3600 + %(days)s::float8 * 86400)
  AND NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = c.workflow_id AND j.entered = c.entered)
  AND NOT EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = c.workflow_id AND d.entered = c.entered)
  AND jsonb_build_array(c.workflow_id, c.entered, c.stage, c.key)::text <> ALL (%(but)s::text[])
LIMIT %(limit)s;

-- name: retention_effects
-- Deletes what is known of effects whose work is done or was given up. Returns how many.
-- Reads dead_jobs, jobs. Writes effects. Locks effects, with SKIP LOCKED. Uses effects_by_time, effects_pkey, jobs_pkey,
-- dead_jobs_pkey.
WITH old AS MATERIALIZED (
    SELECT e.workflow_id, e.entered, e.name
    FROM outbox.effects AS e
    WHERE e.started_at < now() - make_interval(secs => %(days)s::float8 * 86400)
      AND NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = e.workflow_id AND j.entered = e.entered)
      AND NOT EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = e.workflow_id AND d.entered = e.entered)
      AND (%(only)s::text[] IS NULL OR jsonb_build_array(e.workflow_id, e.entered, e.name)::text = ANY (%(only)s::text[]))
      AND jsonb_build_array(e.workflow_id, e.entered, e.name)::text <> ALL (%(but)s::text[])
    LIMIT %(limit)s
    FOR UPDATE OF e SKIP LOCKED
), deleted AS (
    DELETE FROM outbox.effects AS e USING old
    WHERE e.workflow_id = old.workflow_id AND e.entered = old.entered AND e.name = old.name
    RETURNING 1
)
SELECT count(*) FROM deleted;

-- name: effects_to_delete
-- Returns the effects that retention_effects takes, each as the JSON array of its key.
-- Reads dead_jobs, effects, jobs. Uses effects_by_time, jobs_pkey, dead_jobs_pkey.
SELECT jsonb_build_array(e.workflow_id, e.entered, e.name)::text
FROM outbox.effects AS e
WHERE e.started_at < now() - make_interval(secs => %(days)s::float8 * 86400)
  AND NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = e.workflow_id AND j.entered = e.entered)
  AND NOT EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = e.workflow_id AND d.entered = e.entered)
  AND jsonb_build_array(e.workflow_id, e.entered, e.name)::text <> ALL (%(but)s::text[])
LIMIT %(limit)s;
-- name: retention_blob_uses
-- Ends uses of blobs that no data names any more. Returns at how many it has looked. See the functions in
-- sql/functions/blobs.sql.
-- Reads approvals, dead_jobs, jobs, routes, workflow_states. Writes blob_uses, blobs. Locks blobs, then uses, both with SKIP
-- LOCKED. Uses blob_uses_by_time, blobs_pkey, blob_uses_pkey, jobs_pkey, dead_jobs_pkey, workflow_states_pkey, routes_pkey,
-- approvals_by_workflow.
SELECT outbox.blob_uses_sweep(%(hours)s::float8, %(limit)s::integer);

-- name: retention_blobs
-- Deletes blobs that nothing uses, and parts that no blob has. Returns at how many it has looked.
-- Reads blob_uses. Writes blob_parts, blobs. Locks blobs, then parts, both with SKIP LOCKED. Uses blobs_loose,
-- blob_uses_by_blob, blob_parts_loose, blobs_by_part.
SELECT outbox.blobs_sweep(%(hours)s::float8, %(limit)s::integer);

-- name: retention_rates
-- Deletes the start times of partitions that have passed. Returns how many.
-- Writes partition_rates. Locks these rows, with SKIP LOCKED. Uses partition_rates_pkey.
WITH old AS MATERIALIZED (
    SELECT r.pipeline, r.stage, r.partition FROM outbox.partition_rates AS r
    WHERE r.next_at < now() - make_interval(secs => 60 + %(days)s::float8 * 86400)
      AND (%(only)s::text[] IS NULL OR jsonb_build_array(r.pipeline, r.stage, r.partition)::text = ANY (%(only)s::text[]))
      AND jsonb_build_array(r.pipeline, r.stage, r.partition)::text <> ALL (%(but)s::text[])
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM outbox.partition_rates AS r USING old
    WHERE r.pipeline = old.pipeline AND r.stage = old.stage AND r.partition = old.partition RETURNING 1
)
SELECT count(*) FROM deleted;

-- name: rates_to_delete
-- Returns the start times that retention_rates takes, each as the JSON array of its key.
-- Reads partition_rates.
SELECT jsonb_build_array(r.pipeline, r.stage, r.partition)::text
FROM outbox.partition_rates AS r
WHERE r.next_at < now() - make_interval(secs => 60 + %(days)s::float8 * 86400)
  AND jsonb_build_array(r.pipeline, r.stage, r.partition)::text <> ALL (%(but)s::text[])
LIMIT %(limit)s;

-- name: retention_reactions
-- Deletes reactions that have been done for more than `days`, with their history. Returns how many. See the function in
-- sql/functions/reactions.sql.
-- Reads pipelines. Writes workflow_states, state_changes. Locks workflows, with SKIP LOCKED. Uses
-- workflow_states_entity_key, state_changes_pkey.
SELECT outbox.reactions_forget(%(days)s, %(limit)s, %(only)s::uuid[], %(but)s::uuid[]);

-- name: reactions_to_delete
-- Returns the reactions that retention_reactions takes.
-- Reads pipelines, workflow_states. Uses workflow_states_entity_key.
SELECT w.id::text
FROM outbox.pipelines AS p
JOIN outbox.workflow_states AS w ON w.pipeline = p.pipeline AND w.current_status = 'DONE'
WHERE p.reaction_of IS NOT NULL AND w.updated_at < now() - make_interval(secs => %(days)s::float8 * 86400)
  AND w.id <> ALL (%(but)s::uuid[])
LIMIT %(limit)s;

-- name: retention_dead_jobs
-- Drops the errors and tracebacks of jobs that died more than `days` ago. Returns how many. The dead job itself stays
-- as long as its workflow stays there: without it, no list would show that the workflow waits for a person.
-- Writes dead_jobs. Locks dead jobs, with SKIP LOCKED. Uses dead_jobs_by_time, dead_jobs_pkey.
WITH old AS MATERIALIZED (
    SELECT d.workflow_id FROM outbox.dead_jobs AS d
    WHERE d.died_at < now() - make_interval(secs => %(days)s::float8 * 86400) AND d.error <> 'dropped by retention'
      AND (%(only)s::uuid[] IS NULL OR d.workflow_id = ANY (%(only)s::uuid[])) AND d.workflow_id <> ALL (%(but)s::uuid[])
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), dropped AS (
    UPDATE outbox.dead_jobs AS d SET error = 'dropped by retention', traceback = NULL
    FROM old WHERE d.workflow_id = old.workflow_id RETURNING 1
)
SELECT count(*) FROM dropped;

-- name: dead_jobs_to_drop
-- Returns the workflows whose dead jobs retention_dead_jobs takes.
-- Reads dead_jobs. Uses dead_jobs_by_time.
SELECT d.workflow_id::text
FROM outbox.dead_jobs AS d
WHERE d.died_at < now() - make_interval(secs => %(days)s::float8 * 86400) AND d.error <> 'dropped by retention'
  AND d.workflow_id <> ALL (%(but)s::uuid[])
LIMIT %(limit)s;

-- name: retention_rights
-- Returns which of these this role may do: delete workflows, delete history, empty the message log, and empty the inbox
-- after less than a week.
SELECT has_table_privilege('outbox.workflow_states', 'DELETE'), has_table_privilege('outbox.state_changes', 'DELETE'),
       has_table_privilege('outbox.messages', 'TRUNCATE'), has_table_privilege('outbox.inbox', 'TRUNCATE');
