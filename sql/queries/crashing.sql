-- After a crash that a test has made.

-- name: sessions_left
-- Returns how many of these sessions have not ended yet.
SELECT count(*)::integer FROM pg_stat_activity AS a WHERE a.pid = ANY (%(pids)s::integer[]);
