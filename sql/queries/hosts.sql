-- What a process asks each host of its DSN: see outbox/database/hosts.py.

-- name: host_standing
-- Returns which server this is (its system, and when it was started), its timeline (0 in recovery), and whether it can
-- only be read. The timeline is that of what it writes now: pg_control_checkpoint() knows the one before until the
-- checkpoint after a promotion has ended.
SELECT (SELECT s.system_identifier FROM pg_catalog.pg_control_system() AS s)::text,
       pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::text,
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN '0'
            ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END,
       pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool;

-- name: host_standing_without_system
-- Returns the same for a role that may not call pg_control_system(): PUBLIC may, unless it was revoked.
SELECT '', pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::text,
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN '0'
            ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END,
       pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool;
