-- Empties a test's database.

-- name: cleaning_asks
-- Returns the database's name, and the workers whose lease has not run out, but for those of this name.
-- Reads workers.
SELECT current_database()::text, coalesce((
    SELECT string_agg(DISTINCT w.name, ', ') FROM outbox.workers AS w
    WHERE w.beat_at + w.lease > clock_timestamp() AND w.name <> %(name)s::text), '');

-- name: cleaning_begins
-- Lets this transaction delete history.
SELECT set_config('outbox.retention', 'on', true);

-- name: cleaning_ends
-- Takes that right away again.
SELECT set_config('outbox.retention', '', true);

-- name: workflows_clean
-- Deletes all workflows, with what the trigger deletes of them; returns how many.
-- Writes workflow_states.
WITH gone AS (DELETE FROM outbox.workflow_states RETURNING 1) SELECT count(*)::integer FROM gone;

-- name: rest_clean
-- Deletes history, messages, the inbox, questions, and all that is left of workflows that were there. Keeps what deploys have
-- written.
-- Writes approval_links, approval_votes, approvals, blob_parts, blob_uses, blobs, checkpoints, children, dead_counts, dead_jobs,
-- delegations, delivery_attempts, effects, error_kinds, inbox, jobs, messages, orphans, parked_deliveries, parked_messages, partition_rates, pauses, resting, signal_names,
-- signals, state_changes, status_flow, waits.
WITH a AS (DELETE FROM outbox.approval_links), b AS (DELETE FROM outbox.approval_votes), c AS (DELETE FROM outbox.approvals),
     d AS (DELETE FROM outbox.checkpoints), e AS (DELETE FROM outbox.children), f AS (DELETE FROM outbox.dead_counts),
     g AS (DELETE FROM outbox.dead_jobs), h AS (DELETE FROM outbox.delegations), i AS (DELETE FROM outbox.delivery_attempts),
     j AS (DELETE FROM outbox.error_kinds), k AS (DELETE FROM outbox.inbox), l AS (DELETE FROM outbox.jobs),
     m AS (DELETE FROM outbox.messages), n AS (DELETE FROM outbox.orphans), o AS (DELETE FROM outbox.parked_deliveries),
     p AS (DELETE FROM outbox.parked_messages), q AS (DELETE FROM outbox.partition_rates), r AS (DELETE FROM outbox.pauses),
     s AS (DELETE FROM outbox.resting), t AS (DELETE FROM outbox.signals), u AS (DELETE FROM outbox.state_changes),
     v AS (DELETE FROM outbox.status_flow), w AS (DELETE FROM outbox.waits), x AS (DELETE FROM outbox.signal_names),
     y AS (DELETE FROM outbox.effects), uses AS (DELETE FROM outbox.blob_uses), z AS (DELETE FROM outbox.blobs),
     parts AS (DELETE FROM outbox.blob_parts)
SELECT true;

-- name: counts_clean
-- Deletes what the deletes before have written, which are counts and the ends of pauses, and frees the start times of rates.
-- Writes actions, dead_counts, limits, status_counts.
WITH a AS (DELETE FROM outbox.status_counts), b AS (DELETE FROM outbox.dead_counts), d AS (DELETE FROM outbox.actions),
     c AS (UPDATE outbox.limits SET next_at = '-infinity', served = '')
SELECT true;
