-- A worker's own row: its lease.

-- name: worker_register
INSERT INTO outbox.workers (name, stages, lease)
VALUES (%(name)s, %(stages)s, make_interval(secs => %(lease)s))
RETURNING id;

-- name: worker_beat
-- No row: the lease was taken away, and everything held under this id with it.
UPDATE outbox.workers SET beat_at = now(), watched = %(watched)s WHERE id = %(worker)s RETURNING id;

-- name: worker_set_idle
UPDATE outbox.workers SET idle = %(idle)s WHERE id = %(worker)s RETURNING id;

-- name: worker_leave
DELETE FROM outbox.workers WHERE id = %(worker)s;

-- name: worker_watch
-- Held by the session for as long as the process lives: its absence tells of the death within a second.
SELECT pg_try_advisory_lock(hashtext('outbox.worker'), %(worker)s);
