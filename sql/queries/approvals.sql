-- Questions to people, and their answers.

-- name: decide
-- Answers the open question of a workflow, and returns the workflow's new status. See the function in
-- sql/functions/approvals.sql.
-- Writes workflow_states, approvals. Locks the workflow. Uses workflow_states_entity_key, approvals_by_workflow.
SELECT outbox.decide(%(pipeline)s, %(entity)s, %(decision)s, %(by)s, %(reason)s,
                     outbox.data_of_code(%(edit)s::text::jsonb, outbox.plain_of(%(pipeline)s)), %(shown)s);
