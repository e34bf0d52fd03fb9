-- Questions that wait for a person.

-- name: approvals_open
-- Returns the open questions, oldest first or (`by_deadline`) the one first that ends first, each with its votes, its data and
-- whether that has changed since the question was asked. The data is read of those that are returned, and of no others.
-- Reads approval_votes, approvals, workflow_states. Uses approvals_open_by_time, approvals_open_by_pipeline,
-- approvals_open_by_assignee, approvals_open_by_deadline, approval_votes_pkey, approvals_pkey, workflow_states_pkey.
SELECT json_build_array(
    a.id, a.pipeline, a.entity_id, a.status, a.name, a.question, a.options, a.edits_allowed, a.assignee, a.asked_by, a.asked_at,
    a.deadline, a.reminders, a.approvers,
    ARRAY(SELECT jsonb_build_object('person', v.person, 'cast_by', v.cast_by, 'option', v.option, 'groups', v.groups,
                                    'counts', v.shown = outbox.shown(d.data))
          FROM outbox.approval_votes AS v WHERE v.approval_id = a.id ORDER BY v.voted_at),
    d.data::text, outbox.shown(d.data), outbox.shown(d.data) <> a.shown)::text
FROM (SELECT a.* FROM outbox.approvals AS a
      WHERE a.ended_at IS NULL
        AND (%(pipeline)s::text IS NULL OR a.pipeline = %(pipeline)s)
        AND (%(assignee)s::text IS NULL OR a.assignee = %(assignee)s)
        AND (%(after)s::uuid IS NULL OR %(by_deadline)s::boolean OR a.id > %(after)s::uuid)
        AND (%(after)s::uuid IS NULL OR NOT %(by_deadline)s::boolean OR (coalesce(a.deadline, 'infinity'), a.id) > (
             SELECT coalesce(b.deadline, 'infinity'), b.id FROM outbox.approvals AS b WHERE b.id = %(after)s::uuid))
      ORDER BY CASE WHEN %(by_deadline)s::boolean THEN coalesce(a.deadline, 'infinity') END, a.id
      LIMIT %(limit)s::integer) AS a
JOIN outbox.workflow_states AS w ON w.id = a.workflow_id
CROSS JOIN LATERAL (SELECT CASE WHEN a.own_data THEN coalesce(a.edited, a.data) ELSE w.metadata END AS data) AS d
ORDER BY CASE WHEN %(by_deadline)s::boolean THEN coalesce(a.deadline, 'infinity') END, a.id;
