-- A worker's row, which is its lease.

-- name: worker_register
-- Makes the row of a worker, with an id drawn at random: one of a sequence would be another worker's after a failover to a
-- server that lacks the last commits. No row: the id is taken, and is to be drawn again.
-- Writes workers. Uses workers_pkey.
INSERT INTO outbox.workers (name, stages, lease, release)
VALUES (%(name)s, %(stages)s, make_interval(secs => %(lease)s), %(release)s)
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: worker_beat
-- Renews the lease. No row: it was taken away, with everything held under this id.
-- Writes workers. Uses workers_pkey.
UPDATE outbox.workers SET beat_at = now(), watched = %(watched)s WHERE id = %(worker)s RETURNING id;

-- name: worker_beat_on
-- Renews the lease while the worker's event loop is blocked. No row: it was taken away.
-- Writes workers. Uses workers_pkey.
UPDATE outbox.workers SET beat_at = now() WHERE id = %(worker)s RETURNING id;

-- name: worker_set_idle
-- Stores whether to wake this worker when there is work. No row: its lease was taken away.
-- Writes workers. Uses workers_pkey.
UPDATE outbox.workers SET idle = %(idle)s WHERE id = %(worker)s RETURNING id;

-- name: worker_leave
-- Ends the lease.
-- Writes workers. Uses workers_pkey.
DELETE FROM outbox.workers WHERE id = %(worker)s;

-- name: worker_watch
-- Takes the advisory lock of a worker's id. The session holds it as long as the process lives, so its absence shows the
-- death within a second.
-- Locks an advisory lock of the session.
SELECT pg_try_advisory_lock(hashtext('outbox.worker'), %(worker)s);
