-- Sessions on a server that were let go of: see outbox/database/connection_group.py.

-- name: sessions_left
-- Counts which of these sessions are still there, with those of any process of ours whose commits have waited for a standby
-- for long, and says what they wait for.
SELECT count(*), string_agg(DISTINCT coalesce('waits for ' || a.wait_event, a.state), ', ')
FROM pg_stat_activity AS a
WHERE a.usename = session_user AND a.application_name LIKE 'outbox %%'
  AND (a.pid = ANY (%(pids)s::int[]) OR a.wait_event = 'SyncRep' AND a.state_change < clock_timestamp() - interval '5 s');
