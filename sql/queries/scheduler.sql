-- What runs by the clock.

-- name: schedules_look
-- In how many seconds each of these schedules is due.
SELECT s.pipeline, s.schedule, extract(epoch FROM greatest(s.next_at, s.retry_at) - now())::float8
FROM outbox.schedules AS s
JOIN unnest(%(pipelines)s::text[], %(schedules)s::text[]) AS mine (pipeline, schedule) USING (pipeline, schedule)
ORDER BY 3;

-- name: schedule_take
-- Locks a schedule, if it is due and nobody else runs it: until the end of the transaction, in which its function runs.
SELECT s.next_at, now()
FROM outbox.schedules AS s
WHERE s.pipeline = %(pipeline)s AND s.schedule = %(schedule)s AND greatest(s.next_at, s.retry_at) <= now()
FOR NO KEY UPDATE SKIP LOCKED;

-- name: schedule_mark
-- Begins it: who makes changes in it, and for how long it may sit idle, as a frozen process must not hold the tick.
SELECT set_config('outbox.actor', %(actor)s, true),
       set_config('idle_in_transaction_session_timeout', %(idle_ms)s::text, true);

-- name: schedule_advance
-- Commits with what the function has done, or not at all: nothing is returned if this transaction doesn't hold the tick.
UPDATE outbox.schedules AS s
SET next_at = %(next)s, last_at = %(tick)s, ran_at = now(), attempts = 0, retry_at = NULL, error = NULL
WHERE s.pipeline = %(pipeline)s AND s.schedule = %(schedule)s AND s.next_at = %(due)s
RETURNING s.next_at;

-- name: schedule_fail
-- Notes why a tick failed, and when it is tried again, unless somebody has run it meanwhile: after a second, then after
-- twice as long each time, up to five minutes.
UPDATE outbox.schedules AS s
SET attempts = s.attempts + 1, error = %(error)s,
    retry_at = now() + make_interval(secs => least(300, 2 ^ least(s.attempts, 20)) * (0.8 + 0.2 * random()))
WHERE s.pipeline = %(pipeline)s AND s.schedule = %(schedule)s AND s.next_at = %(due)s
RETURNING s.attempts;

-- name: schedules_read
SELECT s.schedule, s.cron, s.timezone, s.catch_up FROM outbox.schedules AS s WHERE s.pipeline = %(pipeline)s;

-- name: schedules_write
-- What is new or has another time begins anew; what is unchanged keeps its place.
INSERT INTO outbox.schedules (pipeline, schedule, cron, timezone, catch_up, next_at)
SELECT %(pipeline)s, n.schedule, n.cron, n.timezone, n.catch_up, n.next_at
FROM unnest(%(schedules)s::text[], %(crons)s::text[], %(timezones)s::text[], %(catch_up)s::boolean[], %(next)s::timestamptz[])
    AS n (schedule, cron, timezone, catch_up, next_at)
ON CONFLICT (pipeline, schedule) DO UPDATE
SET cron = excluded.cron, timezone = excluded.timezone, catch_up = excluded.catch_up, attempts = 0, retry_at = NULL,
    error = NULL,
    next_at = CASE WHEN (schedules.cron, schedules.timezone) = (excluded.cron, excluded.timezone)
                   THEN schedules.next_at ELSE excluded.next_at END;

-- name: schedules_clear
DELETE FROM outbox.schedules AS s WHERE s.pipeline = %(pipeline)s AND s.schedule <> ALL (%(schedules)s::text[]);

-- name: schedules
SELECT s.pipeline, s.schedule, s.cron, s.timezone, s.catch_up, s.next_at, s.last_at, s.ran_at, s.attempts, s.retry_at, s.error,
       extract(epoch FROM now() - s.next_at)::float8 AS late_seconds
FROM outbox.schedules AS s
ORDER BY s.pipeline, s.schedule;
