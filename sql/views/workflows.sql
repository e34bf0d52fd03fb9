-- Each workflow, where it stands, and what it waits for. It is made to be asked for a few: by id, or by pipeline and entity.
--
-- `state` is finished, dead, running, ready, scheduled (its job is due later) or waiting. `since` is when it came to its status.
CREATE OR REPLACE VIEW outbox.workflows AS
SELECT
    w.id, w.pipeline, w.entity_id, w.current_status, w.metadata, w.version, w.created_at, w.updated_at,
    CASE WHEN r.final THEN 'finished' WHEN d.workflow_id IS NOT NULL THEN 'dead' WHEN j.owner IS NOT NULL THEN 'running'
         WHEN j.stage IS NULL OR j.due IS NULL THEN 'waiting' WHEN j.due OR j.run_at <= now() THEN 'ready' ELSE 'scheduled' END AS state,
    coalesce(s.since, (SELECT c.at FROM outbox.state_changes AS c
                       WHERE c.workflow_id = w.id AND c.version = coalesce(j.entered, d.entered)), w.updated_at) AS since,
    coalesce(j.stage, d.stage) AS stage,
    coalesce(d.attempts, CASE WHEN j.stage IS NOT NULL THEN j.attempt END) AS attempt,
    coalesce(d.error, j.error) AS error,
    coalesce(d.kind, outbox.error_kind(j.error)) AS kind,
    CASE WHEN a.id IS NOT NULL THEN 'approval' WHEN t.signal IS NOT NULL THEN 'signal ' || t.signal
         WHEN t.children IS NOT NULL THEN 'children'
         WHEN j.stage IS NOT NULL THEN CASE WHEN j.owner IS NOT NULL OR j.due OR j.run_at <= now() THEN 'worker' ELSE 'timer' END
         WHEN j.deadline IS NOT NULL THEN 'deadline' WHEN s.workflow_id IS NOT NULL THEN 'change' END AS waits_for,
    a.assignee,
    coalesce(j.deadline, CASE WHEN j.owner IS NULL AND NOT j.due AND j.run_at > now() THEN j.run_at END) AS until
FROM outbox.workflow_states AS w
LEFT JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
LEFT JOIN outbox.jobs AS j ON j.workflow_id = w.id
LEFT JOIN outbox.dead_jobs AS d ON d.workflow_id = w.id
LEFT JOIN outbox.resting AS s ON s.workflow_id = w.id
LEFT JOIN outbox.waits AS t ON t.workflow_id = w.id
LEFT JOIN LATERAL (
    SELECT a.id, a.assignee FROM outbox.approvals AS a
    WHERE a.workflow_id = w.id AND a.ended_at IS NULL ORDER BY a.id LIMIT 1
) AS a ON true;
COMMENT ON VIEW outbox.workflows IS
    'Each workflow, where it stands, since when, and what it waits for. Ask it for a few, and outbox.find for lists.';
