-- Sets up the engine's sessions: see outbox/database/session.py.

-- name: session_set
-- Sets these in the session, if this server knows them.
SELECT set_config(s.name, s.value, false)
FROM unnest(%(names)s::text[], %(values)s::text[]) AS s (name, value)
WHERE current_setting(s.name, true) IS NOT NULL;

-- name: session_read
-- Returns the values of these settings.
SELECT n, current_setting(n) FROM unnest(%(names)s::text[]) AS n WHERE current_setting(n, true) IS NOT NULL;

-- name: session_set_local
-- Sets these for the rest of the transaction.
SELECT set_config(s.name, s.value, true)
FROM unnest(%(names)s::text[], %(values)s::text[]) AS s (name, value)
WHERE current_setting(s.name, true) IS NOT NULL;

-- name: session_restore
-- Sets these for the rest of a handler's transaction, and resets others to the value that the session began with. The
-- role is reset for the session, not for the transaction, because the statement after COMMIT needs its rights. Triggers
-- fire again if a superuser has disabled them. Names are qualified, because the handler may have set a search_path of
-- its own.
SELECT pg_catalog.set_config('role', NULL, false)
UNION ALL
SELECT pg_catalog.set_config(s.name, s.value, true)
FROM ROWS FROM (pg_catalog.unnest(%(names)s::text[]), pg_catalog.unnest(%(values)s::text[])) AS s (name, value)
UNION ALL
SELECT pg_catalog.set_config(o.name, NULL, true) FROM pg_catalog.unnest(%(own)s::text[]) AS o (name)
UNION ALL
SELECT pg_catalog.set_config('session_replication_role', 'origin', true)
WHERE pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.<>) 'origin';

-- name: session_clean
-- Forgets everything that was set or made in a session, and sets these.
SELECT outbox.session_clean(%(names)s::text[], %(values)s::text[]);
