-- Questions to people, and their answers.

-- name: decide
-- Answers a question of a workflow, and returns the status that the workflow then has. See the function in
-- sql/functions/approvals.sql.
-- Writes workflow_states, approvals, approval_votes. Locks the workflow. Uses workflow_states_entity_key, approvals_open,
-- approvals_by_workflow, approvals_pkey.
SELECT outbox.decide(%(pipeline)s, %(entity)s, %(decision)s, %(by)s, %(reason)s,
                     outbox.data_of_code(%(edit)s::text::jsonb, outbox.plain_of(%(pipeline)s)), %(shown)s, %(question)s::uuid,
                     %(groups)s::text[], %(about)s::text::jsonb);
