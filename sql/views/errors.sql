-- How many dead jobs there are of each kind of error. It counts none of them: deaths are counted as they happen.
CREATE OR REPLACE VIEW outbox.errors AS
SELECT k.pipeline, k.stage, k.status, k.kind, sum(k.jobs)::bigint AS jobs, min(k.first_at) AS first_at, max(k.last_at) AS last_at
FROM (
    SELECT k.pipeline, k.stage, k.status, k.kind, k.jobs, k.first_at, k.last_at FROM outbox.error_kinds AS k
    UNION ALL
    SELECT c.pipeline, c.stage, c.status, c.kind, c.jobs, CASE WHEN c.jobs > 0 THEN c.at END, CASE WHEN c.jobs > 0 THEN c.at END
    FROM outbox.dead_counts AS c
) AS k
GROUP BY k.pipeline, k.stage, k.status, k.kind HAVING sum(k.jobs) > 0;
COMMENT ON VIEW outbox.errors IS 'How many dead jobs there are of each kind of error, and when the first and the last of them died.';
