-- Workflows that wait for nothing.

-- name: workflows_unattended
-- Counts the workflows in statuses that no stage takes, and that have no wait and no deadline, where others have waited or
-- no change leads on. It subtracts those that wait from the counters, and so counts no workflows.
-- Reads approvals, legal_changes, pipelines, routes, status_counts, waiting. Uses routes_pkey, approvals_open,
-- jobs_with_deadline, waits_pkey, legal_changes_pkey, pipelines_pkey.
WITH parked AS (
    SELECT r.pipeline, r.status, sum(c.workflows)::bigint AS n
    FROM outbox.routes AS r
    JOIN outbox.status_counts AS c ON c.pipeline = r.pipeline AND c.status = r.status
    WHERE r.stage IS NULL AND NOT r.final AND (%(pipeline)s::text IS NULL OR r.pipeline = %(pipeline)s)
    GROUP BY r.pipeline, r.status
), waits AS (
    SELECT w.pipeline, w.status, count(DISTINCT w.workflow_id) AS n
    FROM outbox.waiting AS w
    WHERE w.kind <> 'timer' AND (%(pipeline)s::text IS NULL OR w.pipeline = %(pipeline)s)
    GROUP BY w.pipeline, w.status
), found AS (
    SELECT p.pipeline, p.status, p.n - coalesce(w.n, 0) AS n, w.n IS NOT NULL AS asked,
           NOT EXISTS (SELECT FROM outbox.legal_changes AS l JOIN outbox.pipelines AS of ON of.pipeline = l.pipeline
                       WHERE l.pipeline = p.pipeline AND l.from_status = p.status
                         AND l.to_status IS DISTINCT FROM of.cancelled) AS dead_end
    FROM parked AS p
    LEFT JOIN waits AS w ON w.pipeline = p.pipeline AND w.status = p.status
    WHERE p.n > coalesce(w.n, 0)
)
SELECT f.pipeline, f.status, f.n, f.dead_end
FROM found AS f
WHERE f.dead_end OR f.asked
   OR EXISTS (SELECT FROM outbox.approvals AS a WHERE a.pipeline = f.pipeline AND a.status = f.status)
ORDER BY f.pipeline, f.status;
