-- How many workflows came into each status in each minute, and how many left it; kept for a week. Minutes in which a status had
-- no change have no row.
CREATE OR REPLACE VIEW outbox.flow AS
SELECT f.pipeline, f.status, f.minute, sum(f.came)::bigint AS came, sum(f.went)::bigint AS went
FROM (
    SELECT f.pipeline, f.status, f.minute, f.came, f.went FROM outbox.status_flow AS f
    UNION ALL
    SELECT c.pipeline, c.status, date_trunc('minute', c.at), c.came, c.came - c.workflows
    FROM outbox.status_counts AS c WHERE c.came IS NOT NULL AND c.at IS NOT NULL
) AS f
GROUP BY f.pipeline, f.status, f.minute;
COMMENT ON VIEW outbox.flow IS 'How many workflows came into each status in each minute, and how many left it.';
