-- Turns for migrate, deploy and retry, by advisory locks. Anyone who may connect can hold one.

-- name: patience
-- Returns how long a statement waits for a lock.
SELECT current_setting('lock_timeout');

-- name: patience_set
-- Limits how long a statement waits for a lock, until the end of the transaction.
SELECT set_config('lock_timeout', %(wait)s, true);

-- name: turn_take
-- Waits for a turn, alone or, if shared, beside others, and holds it until the end of the transaction.
-- Locks an advisory lock.
SELECT CASE WHEN %(shared)s::boolean THEN pg_advisory_xact_lock_shared(hashtext(%(name)s))::text
            ELSE pg_advisory_xact_lock(hashtext(%(name)s))::text END;

-- name: turn_holders
-- Returns the sessions that hold a turn: process, login and application.
-- Reads no table of ours.
SELECT l.pid, a.usename, a.application_name
FROM pg_locks AS l
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
  AND l.classid = (hashtext(%(name)s)::bigint >> 32 & 4294967295)::oid
  AND l.objid = (hashtext(%(name)s)::bigint & 4294967295)::oid
ORDER BY l.pid;
