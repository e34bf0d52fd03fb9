-- What `outbox doctor` takes for symptoms of a fault elsewhere. Each statement reads an index that has only what is
-- wrong, or stops at a limit, so it costs the same with ten million rows.

-- name: jobs_put_back_often
-- Returns the stages with jobs that were put back more than twice in a row without a counted attempt, the highest
-- count, and why.
-- Reads jobs. Uses jobs_released_often.
SELECT j.pipeline, j.stage, count(*), max(j.released), (array_agg(j.error ORDER BY j.released DESC))[1]
FROM (SELECT j.pipeline, j.stage, j.released, j.error FROM outbox.jobs AS j WHERE j.released > 2 LIMIT 10000) AS j
GROUP BY j.pipeline, j.stage ORDER BY j.pipeline, j.stage;

-- name: workflows_in_loops
-- Returns workflows at work that have had more than a thousand changes.
-- Reads jobs, workflow_states. Uses jobs_after_many_changes, workflow_states_pkey.
SELECT j.pipeline, j.status, w.entity_id, j.entered
FROM (SELECT j.workflow_id, j.pipeline, j.status, j.entered FROM outbox.jobs AS j WHERE j.entered > 1000 LIMIT 5) AS j
JOIN outbox.workflow_states AS w ON w.id = j.workflow_id
ORDER BY j.entered DESC;

-- name: jobs_held_too_long
-- Counts the jobs of these stages that have been held for longer than the given seconds.
-- Reads jobs. Uses jobs_running.
SELECT j.pipeline, j.stage, count(*), extract(epoch FROM max(now() - j.claimed_at))::float8
FROM outbox.jobs AS j
JOIN unnest(%(pipelines)s::text[], %(stages)s::text[], %(seconds)s::float8[]) AS s (pipeline, stage, seconds)
    ON s.pipeline = j.pipeline AND s.stage = j.stage
WHERE j.owner IS NOT NULL AND j.claimed_at < now() - make_interval(secs => s.seconds)
GROUP BY j.pipeline, j.stage ORDER BY j.pipeline, j.stage;

-- name: parents_stuck
-- Returns workflows whose children have all ended and that have not moved for some seconds, and whether they could.
-- Reads legal_changes, waits, workflow_states. Uses waits_to_join, workflow_states_pkey, legal_changes_pkey.
SELECT s.pipeline, s.current_status, s.entity_id, w.to_status, EXISTS (
           SELECT FROM outbox.legal_changes AS l
           WHERE l.pipeline = s.pipeline AND l.from_status = s.current_status AND l.to_status = w.to_status) AS legal
FROM (SELECT w.workflow_id, w.to_status FROM outbox.waits AS w WHERE w.children <= 0 LIMIT 5) AS w
JOIN outbox.workflow_states AS s ON s.id = w.workflow_id
ORDER BY s.pipeline, s.entity_id;

-- name: sessions_holding_rows
-- Returns other sessions with a transaction that has been open for `long` seconds and has locked or written rows of
-- workflows or jobs.
SELECT a.pid, coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, 'state unknown'), min(c.relname::text),
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8
FROM pg_locks AS l
JOIN pg_class AS c ON c.oid = l.relation AND c.relname IN ('workflow_states', 'jobs')
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = 'outbox'
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.mode IN ('RowShareLock', 'RowExclusiveLock')
  AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
  AND a.pid <> pg_backend_pid() AND a.application_name NOT LIKE 'outbox%%'
  AND a.xact_start < clock_timestamp() - make_interval(secs => %(long)s)
GROUP BY a.pid, a.application_name, a.state, a.xact_start
ORDER BY a.xact_start LIMIT 5;

-- name: counts_unfolded
-- Returns whether there are more than `most` unfolded rows of counts.
-- Reads status_counts.
SELECT count(*) > %(most)s FROM (SELECT FROM outbox.status_counts LIMIT %(most)s + 1) AS c;

-- name: tables_without_identity
-- Returns our tables that a publication includes with updates or deletes, and whose rows it can't identify. The log's
-- tables are only written and emptied.
SELECT p.pubname::text, c.relname::text
FROM pg_publication AS p
JOIN pg_publication_tables AS t ON t.pubname = p.pubname AND t.schemaname = 'outbox' AND t.tablename NOT LIKE 'messages%'
JOIN pg_class AS c ON c.relname = t.tablename AND c.relnamespace = 'outbox'::regnamespace
WHERE (p.pubupdate OR p.pubdelete)
  AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS (
       SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary))
ORDER BY p.pubname, c.relname;

-- name: tables_with_row_security
-- Returns our tables that hide rows from some roles.
SELECT c.relname::text FROM pg_class AS c
WHERE c.relnamespace = 'outbox'::regnamespace AND c.relrowsecurity ORDER BY c.relname;
