-- What workflows wait for besides a worker: one row for each open wait, with a section for each kind.
--
-- A workflow has one row of the kinds that handlers return, or one for each of its questions. Its deadline is that of its job, which may come from the
-- handler or from the pipeline. Each section starts from the table of its kind, by an index where it asks for one workflow
-- (the key) or for deadlines that have passed (jobs_with_deadline); `since` of the last two is read only if it is asked for.
CREATE OR REPLACE VIEW outbox.waiting AS
-- Approval: a person's answer. One of what has become of a call changes no status: its job runs again.
SELECT a.workflow_id, a.pipeline, a.entity_id, a.status, 'approval' AS kind, a.question AS waits_for, a.asked_at AS since,
       j.deadline AS until,
       coalesce((SELECT jsonb_object_agg('the answer ' || o.key, o.value)
                 FROM jsonb_each_text(a.options) AS o (key, value) WHERE a.effect IS NULL), '{}')
           || jsonb_strip_nulls(jsonb_build_object('its deadline', j.on_deadline)) AS ended_by,
       jsonb_build_object('id', a.id, 'name', a.name, 'assignee', a.assignee, 'reminders', a.reminders,
                          'approvers', a.approvers, 'votes', a.votes) AS details
FROM outbox.approvals AS a
LEFT JOIN outbox.jobs AS j ON j.workflow_id = a.workflow_id
WHERE a.ended_at IS NULL

UNION ALL
-- Signal: what another system tells.
SELECT w.workflow_id, s.pipeline, s.entity_id, s.current_status, 'signal', 'signal ' || w.signal, w.since, j.deadline,
       jsonb_strip_nulls(jsonb_build_object('the signal ' || w.signal, w.to_status, 'its deadline', j.on_deadline)),
       jsonb_build_object('signal', w.signal, 'to_status', w.to_status, 'field', w.field)
FROM outbox.waits AS w
JOIN outbox.workflow_states AS s ON s.id = w.workflow_id
LEFT JOIN outbox.jobs AS j ON j.workflow_id = w.workflow_id
WHERE w.signal IS NOT NULL

UNION ALL
-- Children: the end of those that are at work.
SELECT w.workflow_id, s.pipeline, s.entity_id, s.current_status, 'children',
       w.children || CASE w.children WHEN 1 THEN ' child' ELSE ' children' END, w.since, j.deadline,
       jsonb_strip_nulls(jsonb_build_object('its children', w.to_status, 'a failed child', w.on_failure,
                                            'its deadline', j.on_deadline)),
       jsonb_build_object('children', w.children, 'to_status', w.to_status, 'failed', w.failed, 'on_failure', w.on_failure)
FROM outbox.waits AS w
JOIN outbox.workflow_states AS s ON s.id = w.workflow_id
LEFT JOIN outbox.jobs AS j ON j.workflow_id = w.workflow_id
WHERE w.children IS NOT NULL

UNION ALL
-- Deadline: a time in a status of which the pipeline says that a workflow leaves it then. Deadlines of other waits are above.
SELECT j.workflow_id, j.pipeline, s.entity_id, j.status, 'deadline',
       CASE WHEN j.stage IS NULL THEN 'a change of its status' ELSE 'stage ' || j.stage END,
       (SELECT c.at FROM outbox.state_changes AS c WHERE c.workflow_id = j.workflow_id AND c.version = j.entered), j.deadline,
       jsonb_build_object('its deadline', j.on_deadline), '{}'::jsonb
FROM outbox.jobs AS j
JOIN outbox.workflow_states AS s ON s.id = j.workflow_id
WHERE j.deadline IS NOT NULL
  AND NOT EXISTS (SELECT FROM outbox.approvals AS a WHERE a.workflow_id = j.workflow_id AND a.ended_at IS NULL)
  AND NOT EXISTS (SELECT FROM outbox.waits AS w WHERE w.workflow_id = j.workflow_id)

UNION ALL
-- Timer: the time at which the job of a stage is due, by a handler's choice or after a failed attempt.
SELECT j.workflow_id, j.pipeline, s.entity_id, j.status, 'timer',
       CASE WHEN j.attempt = 0 THEN 'stage ' || j.stage ELSE format('attempt %s of stage %s', j.attempt + 1, j.stage) END,
       (SELECT c.at FROM outbox.state_changes AS c WHERE c.workflow_id = j.workflow_id AND c.version = j.entered), j.run_at,
       '{}'::jsonb, jsonb_build_object('stage', j.stage, 'attempt', j.attempt, 'error', j.error)
FROM outbox.jobs AS j
JOIN outbox.workflow_states AS s ON s.id = j.workflow_id
WHERE j.owner IS NULL AND NOT j.due AND j.stage IS NOT NULL AND j.run_at > now();
COMMENT ON VIEW outbox.waiting IS 'What workflows wait for besides a worker: one row for each open wait.';
