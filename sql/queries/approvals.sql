-- What people are asked, and what they answer.

-- name: decide
-- Answers the open question of a workflow, and returns the status that it then has; see the function in
-- sql/functions/approvals.sql.
-- Writes workflow_states, approvals. Locks the workflow. Uses workflow_states_entity_key, approvals_by_workflow.
SELECT outbox.decide(%(pipeline)s, %(entity)s, %(decision)s, %(by)s, %(reason)s, %(edit)s::text::jsonb, %(shown)s);
