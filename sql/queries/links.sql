-- Links by which one person answers one question. The functions are in sql/functions/links.sql.

-- name: link_make
-- Makes a link, and returns its id.
-- Writes approval_links. Locks the workflow. Uses workflow_states_entity_key, approvals_open, approvals_pkey.
SELECT outbox.approval_link(%(pipeline)s, %(entity)s, %(person)s, %(until)s::timestamptz, %(question)s::uuid, %(groups)s::text[])::text;

-- name: link_open
-- Returns what a link is for: the question, with what is shown, and whether its time is over. It changes nothing.
-- Reads approval_links, approvals, workflow_states. Uses approval_links_pkey, approvals_pkey, workflow_states_pkey.
SELECT json_build_array(
    a.pipeline, a.entity_id, a.id, a.question, a.options, d.data, outbox.shown(d.data), l.person, l.until, l.decision,
    a.ended, l.until <= clock_timestamp())::text
FROM outbox.approval_links AS l
JOIN outbox.approvals AS a ON a.id = l.approval_id
JOIN outbox.workflow_states AS w ON w.id = a.workflow_id
CROSS JOIN LATERAL (SELECT CASE WHEN a.own_data THEN coalesce(a.edited, a.data) ELSE w.metadata END AS data) AS d
WHERE l.id = %(link)s::uuid;

-- name: link_use
-- Answers the question of a link in the name of its person, and returns the status that the workflow then has.
-- Writes approval_links, approval_votes, approvals, workflow_states. Locks the workflow, then the link. Uses approval_links_pkey,
-- approvals_pkey, workflow_states_pkey.
SELECT outbox.link_use(%(link)s::uuid, %(decision)s, %(reason)s,
                       outbox.data_of_code(%(edit)s::text::jsonb, outbox.plain_of(%(pipeline)s)), %(shown)s,
                       %(about)s::text::jsonb);
