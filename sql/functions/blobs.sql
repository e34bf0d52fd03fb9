-- Large contents: which workflow uses which, and the removal of what none uses any more.
--
-- What refers to a blob locks the blob's row, and so does what removes it, before it looks for uses. So of a commit that refers to
-- a blob and the sweep that removes it, one waits: the commit finds that the blob is gone, or the sweep that it is used. The
-- look is a statement of its own after the lock, for a statement sees nothing that was committed after its start. Parts are locked
-- in the same way. The order is: blobs, ascending; then their uses; then parts.

CREATE OR REPLACE FUNCTION outbox.blob(sha256 text) RETURNS bytea
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((
        SELECT string_agg(p.content, '' ORDER BY o.n)
        FROM unnest(b.parts) WITH ORDINALITY AS o (sha256, n)
        CROSS JOIN LATERAL (SELECT p.content FROM outbox.blob_parts AS p WHERE p.sha256 = o.sha256 OFFSET 0) AS p), '')
    FROM outbox.blobs AS b WHERE b.sha256 = decode(blob.sha256, 'hex')
$$;
COMMENT ON FUNCTION outbox.blob(text) IS
    'Returns the content of a blob by its hash, as a handle in data names it; null if there is none.';

-- Data names a blob by its hash, wherever an object has it: {"sha256": "...", "size": 7}. So whatever writes such data, also SQL that
-- copies it to another workflow, keeps the blob.
CREATE OR REPLACE FUNCTION outbox.blobs_use(ids uuid[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO outbox.blob_uses (workflow_id, sha256, entered)
    SELECT f.id, b.sha256, f.version
    FROM (
        SELECT DISTINCT i.id, w.version, decode(h.hash #>> '{}', 'hex') AS sha256
        FROM unnest(ids) AS i (id)
        CROSS JOIN LATERAL (SELECT w.version, w.metadata FROM outbox.workflow_states AS w WHERE w.id = i.id OFFSET 0) AS w
        CROSS JOIN LATERAL (
            SELECT w.metadata
            UNION ALL
            SELECT e.data FROM outbox.approvals AS a CROSS JOIN LATERAL (VALUES (a.data), (a.edited)) AS e (data)
            WHERE a.workflow_id = i.id AND a.ended_at IS NULL AND a.own_data
        ) AS d (data)
        CROSS JOIN LATERAL jsonb_path_query(d.data, 'lax $.**.sha256 ? (@ like_regex "^[0-9a-f]{64}$")') AS h (hash)
        ORDER BY 3, 1
    ) AS f
    CROSS JOIN LATERAL (SELECT b.sha256 FROM outbox.blobs AS b WHERE b.sha256 = f.sha256 FOR KEY SHARE) AS b
    -- It locks the use that is there in any case, and makes it younger than what a sweep looks at: one that has looked before
    -- this change must not end it after.
    ON CONFLICT (workflow_id, sha256) DO UPDATE SET kept_until = clock_timestamp()
        WHERE blob_uses.kept_until < clock_timestamp() - interval '30 minutes';
END
$$;
COMMENT ON FUNCTION outbox.blobs_use(uuid[]) IS 'Internal: notes which blobs the data and the open questions of these workflows name.';

CREATE OR REPLACE FUNCTION outbox.blobs_forget(ids uuid[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    locked bytea[];
BEGIN
    locked := ARRAY(SELECT b.sha256 FROM outbox.blobs AS b
                    WHERE b.sha256 = ANY (ARRAY(SELECT u.sha256 FROM outbox.blob_uses AS u WHERE u.workflow_id = ANY (ids)))
                    ORDER BY b.sha256 FOR NO KEY UPDATE);
    DELETE FROM outbox.blob_uses AS u WHERE u.workflow_id = ANY (ids) AND u.sha256 = ANY (locked);
    UPDATE outbox.blobs AS b SET loose = true WHERE b.sha256 = ANY (locked) AND NOT b.loose;
END
$$;
COMMENT ON FUNCTION outbox.blobs_forget(uuid[]) IS 'Internal: ends the uses of blobs by these workflows.';

-- The caller has locked them. What turns out to be used stays.
CREATE OR REPLACE FUNCTION outbox.blobs_remove(hashes bytea[]) RETURNS bytea[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    left_over bytea[];
BEGIN
    WITH gone AS (
        DELETE FROM outbox.blobs AS b
        WHERE b.sha256 = ANY (hashes) AND NOT EXISTS (SELECT FROM outbox.blob_uses AS u WHERE u.sha256 = b.sha256)
        RETURNING b.parts
    )
    SELECT array_agg(DISTINCT p.sha256) INTO left_over FROM gone CROSS JOIN LATERAL unnest(gone.parts) AS p (sha256);
    UPDATE outbox.blobs AS b SET loose = false WHERE b.sha256 = ANY (hashes) AND b.loose;
    RETURN left_over;
END
$$;
COMMENT ON FUNCTION outbox.blobs_remove(bytea[]) IS
    'Internal: deletes those of these blobs that nothing uses, and returns the parts that they had.';

-- The caller has locked them, too. A part of a blob that is there stays.
CREATE OR REPLACE FUNCTION outbox.parts_remove(hashes bytea[]) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = on SET jit = off
AS $$
DECLARE
    removed integer;
BEGIN
    DELETE FROM outbox.blob_parts AS p
    WHERE p.sha256 = ANY (hashes)
      AND NOT EXISTS (SELECT FROM outbox.blobs AS b WHERE b.parts @> ARRAY[p.sha256] OFFSET 0);
    GET DIAGNOSTICS removed = ROW_COUNT;
    UPDATE outbox.blob_parts AS p SET loose_since = NULL WHERE p.sha256 = ANY (hashes) AND p.loose_since IS NOT NULL;
    RETURN removed;
END
$$;
COMMENT ON FUNCTION outbox.parts_remove(bytea[]) IS 'Internal: deletes those of these parts that no blob has; returns how many.';

-- Looks at up to `most` uses that have had to be looked at for `hours`. A use ends when neither the work that has stored the blob has
-- it any more, nor the workflow's data, nor a question that is open or whose answer a handler may still read (answers_read). A use
-- that is a day old is looked at again after as long as it has lasted, two weeks at most. Otherwise each use would be looked at each
-- hour for as long as there is data.
CREATE OR REPLACE FUNCTION outbox.blob_uses_sweep(hours float8, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    until  timestamptz := clock_timestamp() - make_interval(secs => hours * 3600);
    ids    uuid[];
    hashes bytea[];
    locked bytea[];
    looked integer;
    ended  bytea[];
BEGIN
    SELECT array_agg(o.workflow_id), array_agg(o.sha256) INTO ids, hashes
    FROM (SELECT u.workflow_id, u.sha256 FROM outbox.blob_uses AS u WHERE u.kept_until < until ORDER BY u.kept_until LIMIT most) AS o;
    locked := ARRAY(SELECT b.sha256 FROM outbox.blobs AS b WHERE b.sha256 = ANY (hashes)
                    ORDER BY b.sha256 FOR NO KEY UPDATE SKIP LOCKED);
    WITH old AS MATERIALIZED (
        SELECT u.workflow_id, u.sha256, u.entered, encode(u.sha256, 'hex') AS hash
        FROM unnest(ids, hashes) AS o (workflow_id, sha256)
        JOIN outbox.blob_uses AS u ON u.workflow_id = o.workflow_id AND u.sha256 = o.sha256
        WHERE o.sha256 = ANY (locked) AND u.kept_until < until
        FOR UPDATE OF u SKIP LOCKED
    ), looked AS MATERIALIZED (
        SELECT old.workflow_id, old.sha256,
               EXISTS (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = old.workflow_id AND j.entered = old.entered)
            OR EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = old.workflow_id AND d.entered = old.entered)
            OR EXISTS (SELECT FROM outbox.workflow_states AS w
                       WHERE w.id = old.workflow_id AND strpos(w.metadata::text, old.hash) > 0)
            OR EXISTS (SELECT FROM outbox.approvals AS a
                       WHERE a.workflow_id = old.workflow_id AND strpos(concat(a.data, a.edited), old.hash) > 0
                         AND (a.ended_at IS NULL
                              OR a.own_data AND a.effect IS NULL
                              AND a.version = (SELECT max(l.version) FROM outbox.approvals AS l
                                               WHERE l.workflow_id = old.workflow_id AND l.effect IS NULL)
                              AND EXISTS (SELECT FROM outbox.workflow_states AS w
                                          LEFT JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
                                          WHERE w.id = old.workflow_id AND r.final IS NOT TRUE))) AS used
        FROM old
    ), kept AS (
        UPDATE outbox.blob_uses AS u
        SET kept_until = clock_timestamp() + CASE WHEN u.since < clock_timestamp() - interval '1 day'
                                                  THEN least(clock_timestamp() - u.since, interval '14 days') ELSE '0' END
        FROM looked AS l
        WHERE l.used AND u.workflow_id = l.workflow_id AND u.sha256 = l.sha256
    ), gone AS (
        DELETE FROM outbox.blob_uses AS u USING looked AS l
        WHERE NOT l.used AND u.workflow_id = l.workflow_id AND u.sha256 = l.sha256
        RETURNING u.sha256
    )
    SELECT (SELECT count(*) FROM looked), (SELECT array_agg(gone.sha256) FROM gone) INTO looked, ended;
    UPDATE outbox.blobs AS b SET loose = true WHERE b.sha256 = ANY (ended) AND NOT b.loose;
    RETURN looked;
END
$$;
COMMENT ON FUNCTION outbox.blob_uses_sweep(float8, integer) IS
    'Internal: ends uses of blobs that are no longer named, and returns at how many it has looked.';

-- Removes up to `most` blobs that nothing uses, and as many parts that no blob has had for `hours`: until then, something that is being
-- stored may have found them there.
CREATE OR REPLACE FUNCTION outbox.blobs_sweep(hours float8, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    found  bytea[];
    parts  bytea[];
    looked integer;
BEGIN
    found := ARRAY(SELECT b.sha256 FROM outbox.blobs AS b WHERE b.loose LIMIT most FOR UPDATE SKIP LOCKED);
    parts := outbox.blobs_remove(found);
    UPDATE outbox.blob_parts AS p SET loose_since = clock_timestamp()
    FROM (SELECT p.sha256 FROM outbox.blob_parts AS p WHERE p.sha256 = ANY (parts)
          ORDER BY p.sha256 FOR NO KEY UPDATE) AS o
    WHERE p.sha256 = o.sha256;
    looked := cardinality(found);
    found := ARRAY(SELECT p.sha256 FROM outbox.blob_parts AS p
                   WHERE p.loose_since < clock_timestamp() - make_interval(secs => hours * 3600)
                   ORDER BY p.loose_since LIMIT most FOR UPDATE SKIP LOCKED);
    PERFORM outbox.parts_remove(found);
    RETURN greatest(looked, cardinality(found));
END
$$;
COMMENT ON FUNCTION outbox.blobs_sweep(float8, integer) IS
    'Internal: removes blobs that nothing uses, and parts that no blob has; returns at how many it has looked.';
REVOKE EXECUTE ON FUNCTION outbox.blobs_use(uuid[]), outbox.blobs_forget(uuid[]),
    outbox.blobs_remove(bytea[]), outbox.parts_remove(bytea[]), outbox.blob_uses_sweep(float8, integer),
    outbox.blobs_sweep(float8, integer) FROM PUBLIC;
