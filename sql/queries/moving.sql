-- Lets time pass in a test: what is to come comes earlier. Each statement moves the columns of one table, and returns for each
-- column how many of its times lay ahead. `by` is in seconds.

-- name: move_jobs
-- Moves what is put off, and deadlines, also of jobs that run.
-- Writes jobs.
WITH moved AS (
    UPDATE outbox.jobs AS j
    SET run_at = CASE WHEN j.owner IS NULL THEN j.run_at - make_interval(secs => %(by)s::float8) ELSE j.run_at END,
        deadline = j.deadline - make_interval(secs => %(by)s::float8)
    RETURNING NOT j.due AND j.stage IS NOT NULL AS run_at, j.deadline IS NOT NULL AS deadline
)
SELECT 'jobs.run_at', count(*) FILTER (WHERE m.run_at)::integer FROM moved AS m
UNION ALL SELECT 'jobs.deadline', count(*) FILTER (WHERE m.deadline)::integer FROM moved AS m;

-- name: move_approvals
-- Moves the deadlines, reminders and escalations of open questions.
-- Writes approvals.
WITH moved AS (
    UPDATE outbox.approvals AS a
    SET deadline = a.deadline - make_interval(secs => %(by)s::float8),
        remind_at = a.remind_at - make_interval(secs => %(by)s::float8),
        escalate_at = a.escalate_at - make_interval(secs => %(by)s::float8)
    WHERE a.ended_at IS NULL
    RETURNING a.deadline, a.remind_at, a.escalate_at
)
SELECT 'approvals.deadline', count(m.deadline)::integer FROM moved AS m
UNION ALL SELECT 'approvals.remind_at', count(m.remind_at)::integer FROM moved AS m
UNION ALL SELECT 'approvals.escalate_at', count(m.escalate_at)::integer FROM moved AS m;

-- name: move_approval_links
-- Moves the ends of links that were not used.
-- Writes approval_links.
WITH moved AS (
    UPDATE outbox.approval_links AS l SET until = l.until - make_interval(secs => %(by)s::float8)
    WHERE l.used_at IS NULL
    RETURNING 1
)
SELECT 'approval_links.until', count(*)::integer FROM moved;

-- name: move_delegations
-- Moves the ends of delegations.
-- Writes delegations.
WITH moved AS (
    UPDATE outbox.delegations AS d SET until = d.until - make_interval(secs => %(by)s::float8) RETURNING 1
)
SELECT 'delegations.until', count(*)::integer FROM moved;

-- name: move_schedules
-- Moves the next ticks of schedules, and when failed ones are tried again.
-- Writes schedules.
WITH moved AS (
    UPDATE outbox.schedules AS s
    SET next_at = s.next_at - make_interval(secs => %(by)s::float8),
        retry_at = s.retry_at - make_interval(secs => %(by)s::float8)
    RETURNING s.retry_at
)
SELECT 'schedules.next_at', count(*)::integer FROM moved AS m
UNION ALL SELECT 'schedules.retry_at', count(m.retry_at)::integer FROM moved AS m;

-- name: move_limits
-- Moves the first free start times of stages with a rate.
-- Writes limits.
WITH moved AS (
    UPDATE outbox.limits AS l SET next_at = l.next_at - make_interval(secs => %(by)s::float8)
    WHERE l.rate IS NOT NULL AND isfinite(l.next_at)
    RETURNING 1
)
SELECT 'limits.next_at', count(*)::integer FROM moved;

-- name: move_partition_rates
-- Moves the first free start times of partitions.
-- Writes partition_rates.
WITH moved AS (
    UPDATE outbox.partition_rates AS r SET next_at = r.next_at - make_interval(secs => %(by)s::float8) RETURNING 1
)
SELECT 'partition_rates.next_at', count(*)::integer FROM moved;

-- name: move_parked_messages
-- Moves the ends of the minute for which a message that no queue takes waits.
-- Writes parked_messages.
WITH moved AS (
    UPDATE outbox.parked_messages AS p SET waits_until = p.waits_until - make_interval(secs => %(by)s::float8)
    WHERE p.waits_until IS NOT NULL
    RETURNING 1
)
SELECT 'parked_messages.waits_until', count(*)::integer FROM moved;
