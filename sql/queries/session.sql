-- What a session of the engine is like: see outbox/database/session.py. Names are qualified here, for a search_path may have
-- others before them.

-- name: session_set
-- Sets these in the session, or with `local` for the rest of the transaction, as far as this server knows them. With `path`,
-- pg_catalog comes first, though the search_path names it behind other schemas: what is not named is searched first.
-- Returns which server it is, by when it was started, and whether it can only be read.
SELECT extract(epoch FROM pg_catalog.pg_postmaster_start_time())::pg_catalog.text,
       pg_catalog.current_setting('transaction_read_only')::boolean,
       pg_catalog.count(pg_catalog.set_config(s.name, s.value, %(local)s::boolean))
FROM (
    SELECT n.name, n.value
    FROM ROWS FROM (pg_catalog.unnest(%(names)s::text[]), pg_catalog.unnest(%(values)s::text[])) AS n (name, value)
    WHERE pg_catalog.current_setting(n.name, true) IS NOT NULL
    UNION ALL
    SELECT 'search_path', p.path
    FROM (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(s.name), ', ' ORDER BY s.n)
                     FILTER (WHERE s.name OPERATOR(pg_catalog.<>) 'pg_catalog') AS path,
                 pg_catalog.min(s.n) FILTER (WHERE s.name OPERATOR(pg_catalog.=) 'pg_catalog') AS n
          FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS s (name, n)) AS p
    WHERE %(path)s::boolean AND p.n OPERATOR(pg_catalog.>) 1) AS s;

-- name: session_read
-- Returns what these are set to.
SELECT n, pg_catalog.current_setting(n) FROM pg_catalog.unnest(%(names)s::text[]) AS n
WHERE pg_catalog.current_setting(n, true) IS NOT NULL;

-- name: session_wrong
-- Returns those of these that are set otherwise, and the search_path if it names pg_catalog behind other schemas; with what
-- they are to be.
SELECT s.name, pg_catalog.current_setting(s.name), s.value
FROM ROWS FROM (pg_catalog.unnest(%(names)s::text[]), pg_catalog.unnest(%(values)s::text[])) AS s (name, value)
WHERE pg_catalog.current_setting(s.name, true) OPERATOR(pg_catalog.<>) s.value
UNION ALL
SELECT 'search_path', pg_catalog.current_setting('search_path'), NULL
WHERE pg_catalog.array_position(pg_catalog.current_schemas(false), 'pg_catalog'::pg_catalog.name) OPERATOR(pg_catalog.>) 1;

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
WHERE pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.<>) 'origin'
UNION ALL
-- The session began with what the database or the role says: see session_set.
SELECT pg_catalog.set_config('search_path', p.path, true)
FROM (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(s.name), ', ' ORDER BY s.n)
                 FILTER (WHERE s.name OPERATOR(pg_catalog.<>) 'pg_catalog') AS path,
             pg_catalog.min(s.n) FILTER (WHERE s.name OPERATOR(pg_catalog.=) 'pg_catalog') AS n
      FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS s (name, n)) AS p
WHERE p.n OPERATOR(pg_catalog.>) 1;

-- name: session_clean
-- Forgets all that was set or made in a session, and sets these. Returns whether this server can only be read.
SELECT outbox.session_clean(%(names)s::text[], %(values)s::text[]),
       pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('default_transaction_read_only')::boolean;
