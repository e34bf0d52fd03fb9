-- The books of a demo run. Each statement returns what breaks its promise, as (entity, what is wrong): no row if all is right.

-- promise: every post that was submitted is there
SELECT 'posts', count(*) || ' of ' || %(submitted)s::bigint
FROM outbox.workflow_states AS w
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
HAVING count(*) <> %(submitted)s::bigint;

-- promise: every post is in a final status
SELECT w.entity_id, w.current_status
FROM outbox.workflow_states AS w
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
  AND w.current_status NOT IN ('COMPLETED', 'REJECTED');

-- promise: one CRM row for each COMPLETED post, none for any other
SELECT w.entity_id, w.current_status || ' with ' || count(c.entity_id) || ' CRM rows'
FROM outbox.workflow_states AS w
LEFT JOIN demo_crm.posts AS c ON c.entity_id = w.entity_id
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
GROUP BY w.entity_id, w.current_status
HAVING count(c.entity_id) <> (w.current_status = 'COMPLETED')::integer;

-- promise: one history row for each change, an unbroken chain from the first status to the present one
SELECT h.entity_id, coalesce(h.previous, 'nothing') || ', then ' || coalesce(h.from_status, 'nothing') || ' to ' || h.to_status
FROM (
    SELECT w.entity_id, s.from_status, s.to_status,
           lag(s.to_status) OVER (PARTITION BY s.workflow_id ORDER BY s.version, s.id) AS previous
    FROM outbox.workflow_states AS w
    JOIN outbox.state_changes AS s ON s.workflow_id = w.id
    WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
) AS h
WHERE h.from_status IS DISTINCT FROM h.previous
UNION ALL
SELECT w.entity_id, w.current_status || ', but history ends in ' || coalesce(h.to_status, 'nothing')
FROM outbox.workflow_states AS w
LEFT JOIN LATERAL (
    SELECT s.to_status FROM outbox.state_changes AS s
    WHERE s.workflow_id = w.id ORDER BY s.version DESC, s.id DESC LIMIT 1
) AS h ON true
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
  AND h.to_status IS DISTINCT FROM w.current_status;

-- promise: every answer to a review names the person who gave it
SELECT w.entity_id, s.to_status || ' by ' || s.actor
FROM outbox.workflow_states AS w
JOIN outbox.state_changes AS s ON s.workflow_id = w.id
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
  AND s.from_status = 'WAITING_FOR_REVIEW' AND s.actor <> 'sarah';

-- promise: every question was asked once and answered, and the answer is in the history
SELECT w.entity_id, s.to_status || ', while the questions say ' || coalesce(string_agg(a.ended || ' ' || a.to_status, ', '), 'nothing')
FROM outbox.workflow_states AS w
JOIN outbox.state_changes AS s ON s.workflow_id = w.id AND s.from_status = 'WAITING_FOR_REVIEW'
LEFT JOIN outbox.approvals AS a ON a.workflow_id = w.id
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
GROUP BY w.entity_id, s.to_status
HAVING count(*) <> 1 OR bool_or((a.ended, a.to_status, a.decided_by) IS DISTINCT FROM ('decided', s.to_status, 'sarah'));

-- promise: one message for each enriched post
SELECT w.entity_id, e.changes || ' times enriched, ' || m.messages || ' messages'
FROM outbox.workflow_states AS w
CROSS JOIN LATERAL (
    SELECT count(*) AS changes FROM outbox.state_changes AS s
    WHERE s.workflow_id = w.id AND s.to_status = 'ENRICHED'
) AS e
CROSS JOIN LATERAL (
    SELECT count(*) AS messages FROM outbox.messages AS m
    WHERE m.workflow_id = w.id AND m.topic = 'posts.enriched'
) AS m
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
  AND m.messages <> e.changes;

-- promise: no job is left, live or dead
SELECT w.entity_id, j.stage || ' is left'
FROM outbox.workflow_states AS w
JOIN outbox.jobs AS j ON j.workflow_id = w.id
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
UNION ALL
SELECT w.entity_id, d.stage || ' is dead: ' || d.error
FROM outbox.workflow_states AS w
JOIN outbox.dead_jobs AS d ON d.workflow_id = w.id
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s);
