-- What `outbox doctor` looks at where a server has standbys. It is cheap, and needs no superuser.

-- name: replication
-- Returns which standbys are to be synchronous, what this session's commits wait for, how many standbys stream, and
-- whether this role sees more of them. Backups and logical subscribers are no standbys.
-- Reads no table of ours.
SELECT current_setting('synchronous_standby_names'), current_setting('synchronous_commit'),
       (SELECT count(*) FROM pg_stat_replication AS r
        WHERE r.state IS DISTINCT FROM 'backup' AND NOT EXISTS (
            SELECT FROM pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')),
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
WHERE NOT pg_is_in_recovery();

-- name: standbys
-- Returns the standbys that stream, and whether commits wait for them (async: they don't). A role that doesn't see them
-- is given their pids.
-- Reads no table of ours.
SELECT coalesce(nullif(r.application_name, ''), 'pid ' || r.pid)
       || coalesce(' (' || host(r.client_addr) || ')', ''), r.sync_state
FROM pg_stat_replication AS r
WHERE r.state IS DISTINCT FROM 'backup'
  AND (r.application_name = 'pg_receivewal' AND r.sync_state = 'async') IS NOT TRUE AND NOT EXISTS (
    SELECT FROM pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
ORDER BY 1;

-- name: waiting_for_standby
-- Counts the sessions whose commit has waited for a standby for so many seconds, and returns the longest wait.
-- Reads no table of ours.
SELECT count(*), extract(epoch FROM max(now() - a.query_start))::float8
FROM pg_stat_activity AS a
WHERE a.wait_event = 'SyncRep' AND a.query_start < now() - make_interval(secs => %(long)s);

-- name: weaker_commits
-- Returns for which roles and databases synchronous_commit is set to less than `on`: those that may use the schema, in
-- this database. What holds for this session is told elsewhere.
-- Reads no table of ours.
SELECT concat_ws(' in ', 'role ' || r.rolname, CASE WHEN s.setdatabase <> 0 THEN 'database ' || current_database() END),
       split_part(c.setting, '=', 2)
FROM pg_db_role_setting AS s
CROSS JOIN unnest(s.setconfig) AS c (setting)
LEFT JOIN pg_roles AS r ON r.oid = s.setrole
WHERE split_part(c.setting, '=', 1) = 'synchronous_commit'
  AND split_part(c.setting, '=', 2) NOT IN ('on', 'true', 'yes', '1', 'remote_write', 'remote_apply')
  AND (s.setdatabase = 0 OR s.setdatabase = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()))
  AND (s.setrole = 0 OR r.rolname <> current_user AND has_schema_privilege(r.oid, 'outbox', 'USAGE'))
  AND NOT (s.setrole = 0 AND current_setting('synchronous_commit') = split_part(c.setting, '=', 2))
ORDER BY 1;
