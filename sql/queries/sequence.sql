-- What a drain in one sequence asks, beside the engine's own statements.

-- name: clock
-- Returns the time, which goes on in a transaction.
SELECT clock_timestamp();

-- name: jobs_hasten
-- Makes the jobs of these pipelines due whose last attempt has failed, and returns how many.
-- Writes jobs. Uses jobs_scheduled_by_status.
WITH hastened AS (
    UPDATE outbox.jobs AS j SET due = true, run_at = least(j.run_at, clock_timestamp())
    WHERE j.owner IS NULL AND NOT j.due AND j.stage IS NOT NULL AND j.error IS NOT NULL
      AND j.pipeline = ANY (%(pipelines)s::text[])
    RETURNING 1
)
SELECT count(*) FROM hastened;
