-- Lists of workflows, one workflow, and its history.

-- name: workflows_find
-- Returns a page of a list, with the workflows' data if it is wanted. See the function in sql/functions/find.sql.
-- Reads approvals, dead_jobs, jobs, pipelines, resting, routes, state_changes, waits, workflow_states. Uses
-- workflow_states_entity_key, approvals_open_by_time, approvals_open_by_pipeline, approvals_open_by_assignee,
-- dead_jobs_by_status, dead_jobs_by_kind, resting_by_status, jobs_ready_for_claim, jobs_scheduled_by_status, jobs_running,
-- workflow_states_pkey.
SELECT json_build_array(
    f.id, f.pipeline, f.entity_id, f.current_status, f.version, f.created_at, f.updated_at, f.state, f.since, f.stage,
    f.attempt, f.error, f.kind, f.waits_for, f.assignee, f.until, CASE WHEN %(data)s::boolean THEN f.metadata::text END,
    f.cursor)::text
FROM outbox.find(
    of_pipeline => %(pipeline)s, in_status => %(status)s, entity_prefix => %(entity)s,
    older_than => make_interval(secs => %(older)s::float8), assigned_to => %(assignee)s, waiting_for => %(waits_for)s,
    only_dead => %(dead)s::boolean, of_kind => outbox.error_kind(%(error)s), after => %(after)s, most => %(most)s::integer) AS f;

-- name: workflow_get
-- Returns one workflow; no row if there is none.
-- Reads workflows. Uses workflow_states_entity_key, routes_pkey, jobs_pkey, dead_jobs_pkey, resting_pkey, waits_pkey,
-- approvals_open, state_changes_pkey.
SELECT json_build_array(
    w.id, w.pipeline, w.entity_id, w.current_status, w.version, w.created_at, w.updated_at, w.state, w.since, w.stage,
    w.attempt, w.error, w.kind, w.waits_for, w.assignee, w.until, w.metadata::text)::text
FROM outbox.workflows AS w WHERE w.pipeline = %(pipeline)s AND w.entity_id = %(entity)s;

-- name: history_of
-- Returns the latest changes of a workflow, in their order.
-- Reads state_changes, workflow_states. Uses workflow_states_entity_key, state_changes_pkey.
SELECT json_build_array(
    c.from_status, c.to_status, c.version, c.actor, c.login, c.reason, c.stage, c.attempt, c.at)::text
FROM (SELECT c.* FROM outbox.state_changes AS c
      WHERE c.workflow_id = (SELECT w.id FROM outbox.workflow_states AS w
                             WHERE w.pipeline = %(pipeline)s AND w.entity_id = %(entity)s)
      ORDER BY c.version DESC LIMIT %(limit)s::integer) AS c
ORDER BY c.version;
