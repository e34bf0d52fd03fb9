-- What `outbox doctor` checks. It is cheap enough for a busy server, and needs no superuser.

-- name: server
-- Returns the server's version, its relevant settings, and how many connections are used.
SELECT current_setting('server_version_num')::integer, current_setting('server_version'),
       current_setting('max_connections')::integer, pg_is_in_recovery(),
       current_setting('default_transaction_read_only')::boolean,
       current_setting('fsync')::boolean, current_setting('full_page_writes')::boolean,
       current_setting('synchronous_commit'), current_setting('autovacuum')::boolean,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::integer;

-- name: pipelines
-- Returns the deployed pipelines.
-- Reads pipelines.
SELECT p.pipeline, p.deployed_at FROM outbox.pipelines AS p ORDER BY p.pipeline;

-- name: jobs_without_worker
-- Counts claimed jobs whose worker has no row. Any worker's sweep frees them within seconds, if there is a worker.
-- Reads jobs, workers. Uses jobs_running, workers_pkey.
SELECT count(*) FROM outbox.jobs AS j
WHERE j.owner IS NOT NULL AND j.claimed_at < now() - interval '1 minute'
  AND NOT EXISTS (SELECT FROM outbox.workers AS w WHERE w.id = j.owner);

-- name: workers_by_release
-- Returns the stages that live workers of several releases serve, each with these releases.
-- Reads workers.
SELECT s.stage, string_agg(DISTINCT w.release, ', ' ORDER BY w.release)
FROM outbox.workers AS w
CROSS JOIN unnest(w.stages) AS s (stage)
WHERE w.release IS NOT NULL AND w.beat_at + w.lease >= now()
GROUP BY s.stage
HAVING count(DISTINCT w.release) > 1
ORDER BY s.stage;

-- name: signals_in_doubt
-- Returns the names of signals that are kept for workflows that have not ended, though no workflow has waited for them, with
-- how many there are, one of the entities, and what is wrong with the name. Looks at the thousand oldest.
-- Reads routes, signals, workflow_states. Uses signals_to_take, workflow_states_pkey, routes_pkey.
SELECT s.pipeline, count(*), min(s.entity_id), outbox.signal_unknown(s.pipeline, s.name)
FROM (
    SELECT k.workflow_id, k.pipeline, k.entity_id, k.name
    FROM outbox.signals AS k
    WHERE k.taken_at IS NULL
    LIMIT 1000
) AS s
JOIN outbox.workflow_states AS w ON w.id = s.workflow_id
JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status AND NOT r.final
GROUP BY s.pipeline, s.name
HAVING outbox.signal_unknown(s.pipeline, s.name) IS NOT NULL
ORDER BY s.pipeline, s.name;

-- name: workers_late
-- Returns the workers whose lease has run out.
-- Reads workers. Uses workers_pkey.
SELECT w.id, w.name FROM outbox.workers AS w WHERE w.beat_at + w.lease < now() ORDER BY w.id;

-- name: stages_unserved
-- Returns stages that have jobs and that no live worker serves.
-- Reads overview, workers.
SELECT o.pipeline, o.stage, sum(o.ready + o.scheduled)::bigint AS jobs
FROM outbox.overview AS o
WHERE o.stage IS NOT NULL AND NOT EXISTS (
    SELECT FROM outbox.workers AS w
    WHERE o.pipeline || '.' || o.stage = ANY (w.stages) AND w.beat_at + w.lease >= now())
GROUP BY o.pipeline, o.stage HAVING sum(o.ready + o.scheduled) > 0
ORDER BY o.pipeline, o.stage;

-- name: stages_behind
-- Returns stages whose first job in line has been due for more than ten minutes.
-- Reads overview.
SELECT o.pipeline, o.stage, o.ready, extract(epoch FROM o.oldest_waiting)::float8
FROM outbox.overview AS o WHERE o.oldest_waiting > interval '10 minutes' ORDER BY o.pipeline, o.stage;

-- name: jobs_running_long
-- Counts the jobs of each stage that were claimed more than an hour ago.
-- Reads jobs. Uses jobs_running.
SELECT j.pipeline, j.stage, count(*), extract(epoch FROM max(now() - j.claimed_at))::float8
FROM outbox.jobs AS j WHERE j.owner IS NOT NULL AND j.claimed_at < now() - interval '1 hour'
GROUP BY j.pipeline, j.stage ORDER BY j.pipeline, j.stage;

-- name: workflows_without_job
-- Counts workflows in a stage's status that have neither a live nor a dead job, because it was deleted by hand.
-- Reads dead_jobs, jobs, routes, workflow_states. Uses workflow_states_entity_key, jobs_pkey, dead_jobs_pkey.
SELECT w.pipeline, w.current_status, count(*), min(w.entity_id)
FROM outbox.routes AS r
JOIN outbox.workflow_states AS w ON w.pipeline = r.pipeline AND w.current_status = r.status
WHERE r.stage IS NOT NULL
  AND NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = w.id)
  AND NOT EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = w.id)
GROUP BY w.pipeline, w.current_status ORDER BY w.pipeline, w.current_status;

-- name: handlers_hanging
-- Counts the jobs of each stage whose last attempt timed out in a thread, where it may still hang; dead ones by the kind
-- of their error.
-- Reads errors, jobs.
SELECT h.pipeline, h.stage, sum(h.jobs)::bigint, coalesce(sum(h.jobs) FILTER (WHERE h.dead), 0)::bigint
FROM (SELECT j.pipeline, j.stage, j.error, 1 AS jobs, false AS dead FROM outbox.jobs AS j WHERE j.error IS NOT NULL
      UNION ALL
      SELECT e.pipeline, e.stage, e.kind, e.jobs, true FROM outbox.errors AS e) AS h
WHERE h.error LIKE 'TimeoutError: no outcome within the stage''s timeout of %% s; its thread goes on%%'
   OR h.error LIKE 'TimeoutError: the event loop stood still for %%'
GROUP BY h.pipeline, h.stage ORDER BY h.pipeline, h.stage;

-- name: dead_jobs
-- Returns how many dead jobs there are.
-- Reads errors.
SELECT coalesce(sum(e.jobs), 0)::bigint FROM outbox.errors AS e;

-- name: blobs_in_doubt
-- Counts parts that no blob has had for two days, with their bytes, and blobs that lack a part, among a thousand.
-- Reads blob_parts, blobs. Uses blob_parts_loose, blob_parts_pkey.
SELECT loose.parts, loose.bytes, (
    SELECT count(*)
    FROM (SELECT b.parts FROM outbox.blobs AS b LIMIT 1000) AS b
    WHERE EXISTS (SELECT FROM unnest(b.parts) AS o (sha256)
                  WHERE NOT EXISTS (SELECT FROM outbox.blob_parts AS p WHERE p.sha256 = o.sha256)))
FROM (SELECT count(*) AS parts, coalesce(sum(length(p.content)), 0)::bigint AS bytes
      FROM outbox.blob_parts AS p WHERE p.loose_since < now() - interval '2 days') AS loose;

-- name: waits_overdue
-- Counts deadlines that passed more than 15 seconds ago: no worker runs, or the change that they lead to is no longer
-- legal.
-- Reads legal_changes, waiting. Uses approvals_open, jobs_with_deadline, legal_changes_pkey, waits_pkey,
-- workflow_states_pkey.
SELECT o.pipeline, o.status, o.leads_to, count(*), EXISTS (
           SELECT FROM outbox.legal_changes AS l
           WHERE l.pipeline = o.pipeline AND l.from_status = o.status AND l.to_status = o.leads_to) AS legal
FROM (SELECT w.pipeline, w.status, w.ended_by ->> 'its deadline' AS leads_to FROM outbox.waiting AS w
      WHERE w.until < now() - interval '15 seconds') AS o
GROUP BY o.pipeline, o.status, o.leads_to ORDER BY o.pipeline, o.status;

-- name: schedules_late
-- Returns schedules whose tick is more than a minute late.
-- Reads schedules.
SELECT s.pipeline, s.schedule, extract(epoch FROM now() - s.next_at)::float8, s.attempts, s.error
FROM outbox.schedules AS s WHERE s.next_at < now() - interval '1 minute' ORDER BY s.pipeline, s.schedule;

-- name: pauses
-- Returns the paused stages.
-- Reads pauses.
SELECT p.pipeline, p.stage, p.paused_by, p.reason, extract(epoch FROM now() - p.paused_at)::float8
FROM outbox.pauses AS p ORDER BY p.pipeline, p.stage;

-- name: horizon_holders
-- Returns what keeps Postgres from removing dead rows: sessions, prepared transactions and replication slots. A session
-- that has written and is idle in its transaction holds them by its xid alone.
SELECT h.kind, h.name, h.seconds FROM (
    SELECT 'session' AS kind, format('pid %%s (%%s, %%s)', a.pid, coalesce(nullif(a.application_name, ''), 'no name'), a.state) AS name,
           extract(epoch FROM now() - a.xact_start)::float8 AS seconds
    FROM pg_stat_activity AS a
    WHERE coalesce(a.backend_xmin, a.backend_xid) IS NOT NULL
      AND a.xact_start < now() - make_interval(secs => %(long)s) AND a.pid <> pg_backend_pid()
    UNION ALL
    SELECT 'prepared transaction', p.gid, extract(epoch FROM now() - p.prepared)::float8
    FROM pg_prepared_xacts AS p WHERE p.prepared < now() - make_interval(secs => %(long)s)
    UNION ALL
    SELECT 'replication slot', s.slot_name, NULL
    FROM pg_replication_slots AS s WHERE NOT s.active AND (s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL)
) AS h ORDER BY h.seconds DESC NULLS LAST LIMIT 5;

-- name: tables
-- Returns the size of each table, its live and dead rows, and when it was last vacuumed.
SELECT t.relname, t.n_live_tup, t.n_dead_tup, pg_total_relation_size(t.relid), t.last_autovacuum
FROM pg_stat_user_tables AS t WHERE t.schemaname = 'outbox' ORDER BY t.relname;

-- name: sees_all_sessions
-- Returns whether this role can see other roles' sessions.
SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE');

-- name: relays
-- Returns each relay, whether its beat is recent, what it says is wrong, how much it has parked, how much waits for a
-- queue, and the age of the oldest message that it has not passed.
-- Reads messages, parked_messages, relays. Uses messages_by_transaction, parked_messages_pkey.
SELECT r.name, r.owner IS NOT NULL AND r.updated_at > now() - interval '15 seconds' AS runs, r.trouble,
       (SELECT count(*) FROM outbox.parked_messages AS p WHERE p.relay = r.name AND p.waits_until IS NULL),
       (SELECT count(*) FROM outbox.parked_messages AS p WHERE p.relay = r.name AND p.waits_until IS NOT NULL),
       (SELECT extract(epoch FROM now() - greatest(least(m.created_at, now()), '0001-01-02'))::float8
        FROM outbox.messages AS m
        WHERE m.xid >= pg_snapshot_xmin(r.window_start) AND NOT pg_visible_in_snapshot(m.xid, r.window_start)
        ORDER BY m.xid LIMIT 1)
FROM outbox.relays AS r ORDER BY r.name;

-- name: parked_deliveries
-- Returns how much each consumer has parked, and how much of it a person wants to retry: a running consumer takes that
-- within seconds.
-- Reads parked_deliveries.
SELECT p.consumer, count(*), count(*) FILTER (WHERE p.retry)
FROM outbox.parked_deliveries AS p GROUP BY p.consumer ORDER BY p.consumer;

-- name: messages_kept
-- Returns approximately how many messages are in the log (as of the last analyze), and how old the first one is.
-- Reads messages. Uses messages_by_transaction.
SELECT (SELECT sum(greatest(c.reltuples, 0)) FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'outbox.messages'::regclass)::bigint,
       (SELECT extract(epoch FROM now() - greatest(least(m.created_at, now()), '0001-01-02'))::float8
        FROM outbox.messages AS m ORDER BY m.xid LIMIT 1);
