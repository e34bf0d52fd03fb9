-- Cron schedules, and their ticks.

-- name: schedules_look
-- Returns the seconds until each of these schedules is due, and the times with which it is deployed.
-- Reads schedules. Uses schedules_pkey.
SELECT s.pipeline, s.schedule, s.cron, s.timezone, s.catch_up, extract(epoch FROM greatest(s.next_at, s.retry_at) - now())::float8
FROM outbox.schedules AS s
JOIN unnest(%(pipelines)s::text[], %(schedules)s::text[]) AS mine (pipeline, schedule) USING (pipeline, schedule)
ORDER BY 6;

-- name: schedule_take
-- Locks a due schedule that no other worker runs, until the end of the transaction in which its function runs. It must
-- be deployed as this worker defines it, because the worker that takes a tick sets the time of the next one.
-- Reads schedules. Locks the schedule, with SKIP LOCKED. Uses schedules_pkey.
SELECT s.next_at, pg_catalog.now()
FROM outbox.schedules AS s
WHERE s.pipeline = %(pipeline)s AND s.schedule = %(schedule)s AND greatest(s.next_at, s.retry_at) <= pg_catalog.now()
  AND (s.cron, s.timezone, s.catch_up) = (%(cron)s, %(timezone)s, %(catch_up)s)
FOR NO KEY UPDATE SKIP LOCKED;

-- name: schedule_mark
-- Sets who makes the changes of a tick, and how long its transaction may be idle: a frozen process must not hold the
-- tick.
SELECT pg_catalog.set_config('outbox.actor', %(actor)s, true),
       pg_catalog.set_config('idle_in_transaction_session_timeout', %(idle_ms)s::text, true);

-- name: schedule_advance
-- Moves a schedule to its next tick, in the transaction of its function. No row: this transaction doesn't hold the
-- tick.
-- Writes schedules. Uses schedules_pkey.
UPDATE outbox.schedules AS s
SET next_at = %(next)s, last_at = %(tick)s, ran_at = pg_catalog.now(), attempts = 0, retry_at = NULL, error = NULL
WHERE s.pipeline = %(pipeline)s AND s.schedule = %(schedule)s AND s.next_at = %(due)s
RETURNING s.next_at;

-- name: schedule_fail
-- Stores why a tick failed and when it is retried, unless another worker has run it in the meantime. The delay is a
-- second, then doubles each time, up to five minutes.
-- Writes schedules. Uses schedules_pkey.
UPDATE outbox.schedules AS s
SET attempts = s.attempts + 1, error = %(error)s,
    retry_at = now() + make_interval(secs => least(300, 2 ^ least(s.attempts, 20)) * (0.8 + 0.2 * random()))
WHERE s.pipeline = %(pipeline)s AND s.schedule = %(schedule)s AND s.next_at = %(due)s
RETURNING s.attempts;
