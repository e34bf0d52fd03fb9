-- What status, show, dead, approvals, parked and schedules read.

-- name: names_known
-- Returns the names of the pipelines, and those of the statuses of one or (null) of all.
-- Reads pipelines, routes.
SELECT ARRAY(SELECT p.pipeline FROM outbox.pipelines AS p ORDER BY p.pipeline) AS pipelines,
       ARRAY(SELECT DISTINCT r.status FROM outbox.routes AS r
             WHERE %(pipeline)s::text IS NULL OR r.pipeline = %(pipeline)s ORDER BY r.status) AS statuses;

-- name: workers
-- Returns the workers. One that has jobs is not idle, though it may have asked to be notified of more.
-- Reads jobs, workers. Uses jobs_running.
SELECT w.id, w.name, w.release, w.stages, w.idle AND NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.owner = w.id) AS idle, w.started_at, extract(epoch FROM now() - w.beat_at)::float8 AS beat_seconds_ago
FROM outbox.workers AS w
ORDER BY w.id;

-- name: limits
-- Returns the limits of each limited stage (rates are per second), and how many of its jobs are running and ready,
-- counted up to a thousand.
-- Reads jobs, limits, routes. Uses jobs_running_by_partition, jobs_ready_by_partition.
SELECT l.pipeline, l.stage, l.concurrency, l.rate, l.partition_concurrency, l.partition_rate,
       (SELECT array_to_string(r.partition, '.') FROM outbox.routes AS r
        WHERE r.pipeline = l.pipeline AND r.stage = l.stage AND NOT r.running AND r.partition <> '{}') AS partition,
       (SELECT array_to_string(r.priority, '.') FROM outbox.routes AS r
        WHERE r.pipeline = l.pipeline AND r.stage = l.stage AND NOT r.running AND r.priority <> '{}') AS priority,
       (SELECT count(*) FROM (SELECT FROM outbox.jobs AS j WHERE j.pipeline = l.pipeline AND j.stage = l.stage
                              AND j.owner IS NOT NULL AND j.partition IS NOT NULL LIMIT 1000) AS j) AS running,
       (SELECT count(*) FROM (SELECT FROM outbox.jobs AS j WHERE j.pipeline = l.pipeline AND j.stage = l.stage
                              AND j.owner IS NULL AND j.due AND j.partition IS NOT NULL LIMIT 1000) AS j) AS ready
FROM outbox.limits AS l
ORDER BY l.pipeline, l.stage;

-- name: overdue
-- Counts workflows whose deadline passed more than a minute ago, a thousand at most.
-- Reads waiting. Uses approvals_open, jobs_with_deadline, waits_pkey, workflow_states_pkey.
SELECT o.pipeline, o.status, o.kind, count(DISTINCT o.workflow_id) AS workflows, extract(epoch FROM now() - min(o.until))::float8 AS overdue_seconds
FROM (SELECT w.workflow_id, w.pipeline, w.status, w.kind, w.until FROM outbox.waiting AS w
      WHERE w.until < now() - interval '1 minute' LIMIT 1000) AS o
GROUP BY o.pipeline, o.status, o.kind ORDER BY o.pipeline, o.status, o.kind;

-- name: progress
-- Returns the progress that handlers have reported for running jobs, longest running first.
-- Reads jobs, workflow_states. Uses jobs_running, workflow_states_pkey.
SELECT j.pipeline, j.stage, w.entity_id, j.attempt, j.progress, extract(epoch FROM now() - j.claimed_at)::float8 AS seconds
FROM outbox.jobs AS j
JOIN outbox.workflow_states AS w ON w.id = j.workflow_id
WHERE j.owner IS NOT NULL AND j.progress IS NOT NULL
ORDER BY j.claimed_at LIMIT 50;

-- name: checkpoints_of_workflow
-- Returns the results kept for a workflow, latest first. Of one that is a blob, its hash.
-- Reads checkpoints. Uses checkpoints_pkey.
SELECT c.stage, c.key, c.function, coalesce(c.result, jsonb_build_object('blob', encode(c.blob, 'hex'))) AS result, c.attempt,
       c.made_at
FROM outbox.checkpoints AS c WHERE c.workflow_id = %(id)s ORDER BY c.made_at DESC, c.key DESC LIMIT %(limit)s;

-- name: effects_of_workflow
-- Returns the effects of a workflow, latest first, and what is known of each. Of a result that is a blob, its hash.
-- Reads effects. Uses effects_pkey.
SELECT e.stage, e.name, e.function, outbox.effect_state(e) AS state, e.calls, e.attempt,
       CASE WHEN e.blob IS NULL THEN e.result ELSE jsonb_build_object('blob', encode(e.blob, 'hex')) END AS result,
       e.error, e.known_by, e.started_at, e.ended_at
FROM outbox.effects AS e WHERE e.workflow_id = %(id)s ORDER BY e.started_at DESC, e.name DESC LIMIT %(limit)s;

-- name: effects
-- Returns effects of one pipeline or (null) of all, latest first, and what is known of each; with `unknown` only those of
-- which that isn't, the oldest first.
-- Reads effects, workflow_states. Uses effects_by_time, effects_started, workflow_states_pkey.
SELECT k.* FROM (
    SELECT w.pipeline, w.entity_id, w.current_status AS status, e.stage, e.name, outbox.effect_state(e) AS state, e.calls, e.error,
           e.known_by, e.started_at, e.ended_at
    FROM outbox.effects AS e JOIN outbox.workflow_states AS w ON w.id = e.workflow_id
    WHERE (NOT %(unknown)s::boolean OR e.state = 'started') AND (%(pipeline)s::text IS NULL OR w.pipeline = %(pipeline)s)
) AS k
WHERE NOT %(unknown)s::boolean OR k.state <> 'started'
ORDER BY CASE WHEN %(unknown)s::boolean THEN k.started_at END, k.started_at DESC
LIMIT %(limit)s;

-- name: effects_count
-- Returns how many such effects there are, up to a number.
-- Reads effects, workflow_states. Uses effects_by_time, effects_started, workflow_states_pkey.
SELECT count(*) FROM (
    SELECT FROM outbox.effects AS e JOIN outbox.workflow_states AS w ON w.id = e.workflow_id
    WHERE (NOT %(unknown)s::boolean OR e.state = 'started' AND outbox.effect_state(e) <> 'started')
      AND (%(pipeline)s::text IS NULL OR w.pipeline = %(pipeline)s)
    LIMIT %(most)s) AS k;

-- name: effects_unknown
-- Counts the effects that may or may not have happened, and those of which people are asked, among the ten thousand oldest
-- that are not known to have. Those of work that was given up, as by a change by hand, wait for nobody.
-- Reads dead_jobs, effects, jobs, workflow_states. Uses effects_started, jobs_pkey, dead_jobs_pkey, workflow_states_pkey.
SELECT w.pipeline, e.stage, count(*) AS unknown, count(*) FILTER (WHERE e.state = 'asked') AS asked,
       extract(epoch FROM now() - min(e.started_at))::float8 AS oldest_seconds
FROM (SELECT e.workflow_id, e.entered, e.stage, e.started_at, outbox.effect_state(e) AS state
      FROM outbox.effects AS e WHERE e.state = 'started' ORDER BY e.started_at LIMIT 10000) AS e
JOIN outbox.workflow_states AS w ON w.id = e.workflow_id
WHERE e.state <> 'started'
  AND (EXISTS (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = e.workflow_id AND j.entered = e.entered)
       OR EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = e.workflow_id AND d.entered = e.entered))
GROUP BY w.pipeline, e.stage ORDER BY w.pipeline, e.stage;

-- name: workflows_of_entity
-- Returns the workflows of an entity, in one pipeline or (null) in all.
-- Reads pipelines, workflow_states. Uses workflow_states_entity_key.
SELECT w.id, w.pipeline, w.entity_id, w.current_status, w.metadata, w.version, w.created_at, w.updated_at
FROM outbox.workflow_states AS w
WHERE w.entity_id = %(entity)s AND w.pipeline = ANY (
    CASE WHEN %(pipeline)s::text IS NULL
         THEN ARRAY(SELECT p.pipeline FROM outbox.pipelines AS p) ELSE ARRAY[%(pipeline)s::text] END)
ORDER BY w.pipeline;

-- name: history
-- Returns the history of a workflow, latest change first.
-- Reads state_changes. Uses state_changes_pkey.
SELECT c.from_status, c.to_status, c.version, c.actor, c.login, c.reason, c.stage, c.attempt, c.at
FROM outbox.state_changes AS c WHERE c.workflow_id = %(id)s ORDER BY c.version DESC LIMIT %(limit)s;

-- name: job
-- Returns the live job of a workflow, and its state.
-- Reads jobs. Uses jobs_pkey.
SELECT j.stage, j.attempt, j.owner, j.run_at, j.claimed_at, j.error, j.deadline, j.on_deadline, j.progress,
       CASE WHEN j.stage IS NULL OR j.due IS NULL THEN 'waiting' WHEN j.owner IS NOT NULL THEN 'running' WHEN j.due OR j.run_at <= now() THEN 'ready' ELSE 'scheduled' END AS state
FROM outbox.jobs AS j WHERE j.workflow_id = %(id)s;

-- name: dead_job
-- Returns the dead job of a workflow.
-- Reads dead_jobs. Uses dead_jobs_pkey.
SELECT d.stage, d.attempts, d.error, d.died_at, d.traceback FROM outbox.dead_jobs AS d WHERE d.workflow_id = %(id)s;

-- name: messages
-- Returns the messages of a workflow that are still in the log, latest first.
-- Reads messages. Uses messages_by_workflow.
SELECT m.id, m.message_id, m.topic, m.key, m.payload, m.headers,
       greatest(least(m.created_at, '9999-12-30 00:00+00'), '0001-01-02 00:00+00') AS created_at
FROM outbox.messages AS m WHERE m.workflow_id = %(id)s ORDER BY m.id DESC LIMIT %(limit)s;

-- name: approval_is_open
-- Returns whether a workflow has an open question.
-- Reads approvals. Uses approvals_open.
SELECT EXISTS (SELECT FROM outbox.approvals AS a WHERE a.workflow_id = %(id)s AND a.ended_at IS NULL) AS open;

-- name: approvals_of_workflow
-- Returns the questions that a workflow has asked, latest first.
-- Reads approval_votes, approvals. Uses approvals_by_workflow, approval_votes_pkey.
SELECT a.id, a.status, a.version, a.name, a.question, a.shown, a.options, a.assignee, a.asked_by, a.stage, a.asked_at, a.deadline,
       a.reminders, a.approvers, a.votes, a.ended, a.decision, a.to_status, a.decided_by, a.login, a.reason, a.edited, a.ended_at,
       CASE WHEN a.votes > 0 THEN
           ARRAY(SELECT jsonb_build_object('person', v.person, 'cast_by', v.cast_by, 'login', v.login, 'option', v.option,
                                           'groups', v.groups, 'reason', v.reason, 'voted_at', v.voted_at)
                 FROM outbox.approval_votes AS v WHERE v.approval_id = a.id ORDER BY v.voted_at)
       ELSE '{}' END AS voted
FROM outbox.approvals AS a WHERE a.workflow_id = %(id)s ORDER BY a.version DESC, a.id DESC LIMIT %(limit)s;

-- name: question
-- Returns a question with its answer, its votes, what it is about now, and the schema of that if it is the workflow's data.
-- Reads approval_votes, approvals, pipelines, workflow_states. Uses approvals_pkey, approval_votes_pkey, pipelines_pkey,
-- workflow_states_pkey.
SELECT a.id, a.pipeline, a.entity_id, a.status, a.name, a.question, a.options, a.edits_allowed, a.own_data, a.assignee, a.asked_by,
       a.asked_at, a.deadline, a.approvers, a.ended, a.decision, a.to_status, a.decided_by, a.login, a.reason, a.ended_at,
       ARRAY(SELECT jsonb_build_object('person', v.person, 'option', v.option, 'cast_by', v.cast_by, 'reason', v.reason,
                                       'counts', v.shown = outbox.shown(d.data))
             FROM outbox.approval_votes AS v WHERE v.approval_id = a.id ORDER BY v.voted_at) AS votes,
       d.data, outbox.shown(d.data) AS shown, outbox.shown(d.data) <> a.shown AS changed,
       CASE WHEN NOT a.own_data THEN (SELECT p.json_schema FROM outbox.pipelines AS p WHERE p.pipeline = a.pipeline) END AS schema
FROM outbox.approvals AS a
JOIN outbox.workflow_states AS w ON w.id = a.workflow_id
CROSS JOIN LATERAL (SELECT CASE WHEN a.own_data THEN coalesce(a.edited, a.data) ELSE w.metadata END AS data) AS d
WHERE a.id = %(id)s::uuid;

-- name: askers
-- Returns who has asked a question: who it says, or else who has started its workflow or, of one that was spawned, an ancestor of it.
-- Reads approvals, children, state_changes. Uses approvals_pkey, children_pkey, state_changes_pkey.
WITH RECURSIVE line (id) AS (
    SELECT a.workflow_id FROM outbox.approvals AS a WHERE a.id = %(id)s::uuid AND a.asked_login IS NOT NULL
    UNION
    SELECT c.parent_id FROM line AS l JOIN outbox.children AS c ON c.child_id = l.id
)
SELECT a.asked_by AS name FROM outbox.approvals AS a WHERE a.id = %(id)s::uuid AND a.asked_by IS NOT NULL
UNION
SELECT s.actor FROM line AS l JOIN outbox.state_changes AS s ON s.workflow_id = l.id AND s.version = 1;

-- name: signals_of_workflow
-- Returns the signals sent to a workflow, latest first.
-- Reads signals. Uses signals_are_one_by_id.
SELECT s.id, s.name, s.payload, s.signal_id, s.sent_by, s.login, s.sent_at, s.taken_at
FROM outbox.signals AS s WHERE s.workflow_id = %(id)s ORDER BY s.id DESC LIMIT %(limit)s;

-- name: actions_of_workflow
-- Returns what people have done to a workflow that changed no status, latest first.
-- Reads actions. Uses actions_by_workflow.
SELECT a.at, a.action, a.stage, a.actor, a.login, a.reason
FROM outbox.actions AS a WHERE a.workflow_id = %(id)s ORDER BY a.at DESC LIMIT %(limit)s;

-- name: waiting_of_workflow
-- Returns what a workflow waits for, the wait of a handler first.
-- Reads waiting. Uses approvals_open, jobs_pkey, waits_pkey, workflow_states_pkey.
SELECT w.kind, w.waits_for, w.since, w.until, w.ended_by, w.details
FROM outbox.waiting AS w WHERE w.workflow_id = %(id)s ORDER BY w.kind IN ('deadline', 'timer'), w.kind LIMIT 1;

-- name: children_of_workflow
-- Returns the children of a workflow, and whether each has ended; those that haven't come first.
-- Reads children, routes, workflow_states. Uses children_by_parent, workflow_states_pkey.
SELECT w.pipeline, w.entity_id, w.current_status AS status, r.final AS ended
FROM outbox.children AS c
JOIN outbox.workflow_states AS w ON w.id = c.child_id
LEFT JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
WHERE c.parent_id = %(id)s ORDER BY r.final, w.pipeline, w.entity_id LIMIT %(limit)s;

-- name: status_is_final
-- Returns whether a workflow in this status has ended.
-- Reads routes. Uses routes_pkey.
SELECT EXISTS (SELECT FROM outbox.routes AS r
               WHERE r.pipeline = %(pipeline)s AND r.status = %(status)s AND r.final) AS final;

-- name: sizes_of_workflow
-- Returns how many rows of each kind a workflow has.
-- Reads actions, approvals, checkpoints, children, effects, messages, signals, state_changes. Uses actions_by_workflow,
-- approvals_by_workflow, checkpoints_pkey, children_by_parent, effects_pkey, messages_by_workflow, signals_are_one_by_id,
-- state_changes_pkey.
SELECT (SELECT count(*) FROM outbox.state_changes AS c WHERE c.workflow_id = %(id)s) AS history,
       (SELECT count(*) FROM outbox.actions AS a WHERE a.workflow_id = %(id)s) AS actions,
       (SELECT count(*) FROM outbox.checkpoints AS c WHERE c.workflow_id = %(id)s) AS checkpoints,
       (SELECT count(*) FROM outbox.effects AS e WHERE e.workflow_id = %(id)s) AS effects,
       (SELECT count(*) FROM outbox.approvals AS a WHERE a.workflow_id = %(id)s) AS approvals,
       (SELECT count(*) FROM outbox.children AS c WHERE c.parent_id = %(id)s) AS children,
       (SELECT count(*) FROM outbox.signals AS s WHERE s.workflow_id = %(id)s) AS signals,
       (SELECT count(*) FROM outbox.messages AS m WHERE m.workflow_id = %(id)s) AS messages;

-- name: parent_of_workflow
-- Returns the parent of a workflow.
-- Reads children, workflow_states. Uses children_pkey, workflow_states_pkey.
SELECT w.pipeline, w.entity_id, w.current_status AS status
FROM outbox.children AS c JOIN outbox.workflow_states AS w ON w.id = c.parent_id WHERE c.child_id = %(id)s;

-- name: errors
-- Returns the kinds of errors that dead jobs died of, the most frequent first.
-- Reads errors.
SELECT e.pipeline, e.stage, e.kind, sum(e.jobs)::bigint AS jobs, min(e.first_at) AS first_at, max(e.last_at) AS last_at
FROM outbox.errors AS e
WHERE (%(pipeline)s::text IS NULL OR e.pipeline = %(pipeline)s)
  AND (%(error)s::text IS NULL OR e.kind = outbox.error_kind(%(error)s))
GROUP BY e.pipeline, e.stage, e.kind
ORDER BY jobs DESC, e.pipeline, e.stage, e.kind;

-- name: approvals_open_count
-- Returns how many open questions there are, up to a number.
-- Reads approvals. Uses approvals_open_by_time, approvals_open_by_pipeline, approvals_open_by_assignee.
SELECT count(*) FROM (
    SELECT FROM outbox.approvals AS a
    WHERE a.ended_at IS NULL
      AND (%(pipeline)s::text IS NULL OR a.pipeline = %(pipeline)s)
      AND (%(assignee)s::text IS NULL OR a.assignee = %(assignee)s)
    LIMIT %(most)s) AS a;

-- name: delegations
-- Returns who may vote in whose place, until when, and by which groups. Those that have ended are left out.
-- Reads delegations.
SELECT d.from_person, d.to_person, d.until, d.groups, d.reason, d.since, d.login
FROM outbox.delegations AS d
WHERE d.until > clock_timestamp() AND (%(person)s::text IS NULL OR %(person)s IN (d.from_person, d.to_person))
ORDER BY d.until, d.from_person, d.to_person
LIMIT %(limit)s;

-- name: delegations_count
-- Returns how many delegations have not ended, up to a number.
-- Reads delegations.
SELECT count(*) FROM (
    SELECT FROM outbox.delegations AS d
    WHERE d.until > clock_timestamp() AND (%(person)s::text IS NULL OR %(person)s IN (d.from_person, d.to_person))
    LIMIT %(most)s) AS d;

-- name: now
-- Returns the time.
SELECT clock_timestamp() AS now;

-- name: parked_count
-- Returns how many messages relays could not send and consumers could not handle, up to a number of each.
-- Reads parked_deliveries, parked_messages.
SELECT (SELECT count(*) FROM (
            SELECT FROM outbox.parked_messages AS p
            WHERE %(consumer)s::text IS NULL AND (%(relay)s::text IS NULL OR p.relay = %(relay)s) LIMIT %(most)s) AS p)
     + (SELECT count(*) FROM (
            SELECT FROM outbox.parked_deliveries AS d
            WHERE %(relay)s::text IS NULL AND (%(consumer)s::text IS NULL OR d.consumer = %(consumer)s) LIMIT %(most)s) AS d)
       AS count;

-- name: relays
-- Returns each relay and how far it has got: `behind_seconds` is the age of the oldest message that it has not passed,
-- null if it has passed all.
-- Reads messages, parked_messages, relays. Uses messages_by_transaction, parked_messages_pkey.
SELECT r.name, r.owner IS NOT NULL AND r.updated_at > now() - interval '15 seconds' AS running, r.owner, r.target,
       r.settings, r.relayed, r.trouble, extract(epoch FROM now() - r.updated_at)::float8 AS beat_seconds_ago,
       (SELECT count(*) FROM outbox.parked_messages AS p WHERE p.relay = r.name) AS parked,
       (SELECT extract(epoch FROM now() - greatest(least(m.created_at, now()), '0001-01-02'))::float8
        FROM outbox.messages AS m
        WHERE m.xid >= pg_snapshot_xmin(r.window_start) AND NOT pg_visible_in_snapshot(m.xid, r.window_start)
          AND NOT (r.window_end IS NOT NULL AND pg_visible_in_snapshot(m.xid, r.window_end) AND m.id <= r.position)
        ORDER BY m.xid LIMIT 1) AS behind_seconds
FROM outbox.relays AS r
ORDER BY r.name;

-- name: parked_deliveries
-- Returns what each consumer has parked. A consumer that has parked nothing has no row, because consumers leave no
-- other trace.
-- Reads parked_deliveries.
SELECT p.consumer, count(*) AS parked, count(*) FILTER (WHERE p.retry) AS to_retry,
       extract(epoch FROM now() - min(p.parked_at))::float8 AS oldest_seconds
FROM outbox.parked_deliveries AS p
GROUP BY p.consumer
ORDER BY p.consumer;

-- name: parked
-- Returns what relays could not send, then what consumers could not handle, the oldest of each first. A delivery's body
-- is what arrived; its key is where a relay writes it.
-- Reads parked_deliveries, parked_messages.
SELECT p.relay, NULL AS consumer, p.id, p.message_id::text, p.topic, p.key, p.payload, NULL::bytea AS body, p.headers,
       NULL AS queue, NULL::integer AS deliveries, p.reason, p.retry, p.created_at, p.parked_at, p.waits_until
FROM outbox.parked_messages AS p
WHERE %(consumer)s::text IS NULL AND (%(relay)s::text IS NULL OR p.relay = %(relay)s)
UNION ALL
SELECT NULL, d.consumer, d.id, d.message_id, d.topic,
       coalesce(d.headers ->> 'cloudEvents_subject', d.headers ->> 'cloudEvents:subject'), NULL, d.body, d.headers,
       d.queue, d.deliveries, d.reason, d.retry, NULL, d.parked_at, NULL
FROM outbox.parked_deliveries AS d
WHERE %(relay)s::text IS NULL AND (%(consumer)s::text IS NULL OR d.consumer = %(consumer)s)
ORDER BY consumer NULLS FIRST, relay, id
LIMIT %(limit)s;

-- name: schedules
-- Returns the schedules, and how late each is.
-- Reads schedules.
SELECT s.pipeline, s.schedule, s.cron, s.timezone, s.catch_up, s.next_at, s.last_at, s.ran_at, s.attempts, s.retry_at, s.error,
       extract(epoch FROM now() - s.next_at)::float8 AS late_seconds
FROM outbox.schedules AS s
ORDER BY s.pipeline, s.schedule;
