-- Stores and reads large contents. Parts are written before what refers to them, in statements of their own: one
-- transaction for a gigabyte would hold back vacuum for as long as its source takes. What refers to them finds out, under
-- lock, whether all of them are there.

-- name: parts_keep
-- Returns which of these parts are there, and keeps these from being swept for a day.
-- Writes blob_parts. Locks these parts, ascending. Uses blob_parts_pkey.
WITH there AS MATERIALIZED (
    SELECT p.sha256, p.loose_since FROM outbox.blob_parts AS p
    WHERE p.sha256 = ANY (%(parts)s::bytea[])
    ORDER BY p.sha256
    FOR NO KEY UPDATE
), kept AS (
    UPDATE outbox.blob_parts AS p SET loose_since = clock_timestamp()
    FROM there WHERE p.sha256 = there.sha256 AND there.loose_since IS NOT NULL
)
SELECT encode(there.sha256, 'hex') FROM there;

-- name: parts_write
-- Stores parts. One that another session has stored meanwhile is kept as parts_keep keeps it.
-- Writes blob_parts. Locks these parts, ascending. Uses blob_parts_pkey.
INSERT INTO outbox.blob_parts (sha256, content)
SELECT sha256(o.content), o.content FROM unnest(%(contents)s::bytea[]) AS o (content)
ORDER BY 1
ON CONFLICT (sha256) DO UPDATE SET loose_since = clock_timestamp() WHERE blob_parts.loose_since IS NOT NULL;

-- name: blob_write
-- Stores a blob, that its workflow uses it, and, with a `key`, the checkpoint whose result it is: if this attempt still holds its
-- job, and all parts are there. Returns whether it holds the job, whether they are there, and whether the result was kept.
-- It can be repeated.
-- Reads jobs. Writes blob_parts, blob_uses, blobs, checkpoints. Locks the job, shared, then the blob, then the parts,
-- ascending. Uses jobs_pkey, blob_parts_pkey, blobs_pkey, blob_uses_pkey, checkpoints_pkey.
WITH held AS MATERIALIZED (
    SELECT j.workflow_id FROM outbox.jobs AS j
    WHERE j.workflow_id = %(id)s::uuid AND j.id = %(job)s AND j.owner = %(worker)s AND j.attempt = %(attempt)s
    FOR SHARE
), same AS MATERIALIZED (
    -- The blob before its parts, as what removes them.
    SELECT b.sha256 FROM outbox.blobs AS b
    WHERE b.sha256 = decode(%(blob)s::text, 'hex') AND (SELECT count(*) FROM held) > 0
    FOR NO KEY UPDATE
), there AS MATERIALIZED (
    SELECT p.sha256, p.loose_since FROM outbox.blob_parts AS p
    WHERE p.sha256 = ANY (%(parts)s::bytea[]) AND (SELECT count(*) FROM held) + (SELECT count(*) FROM same) > 0
    ORDER BY p.sha256
    FOR NO KEY UPDATE
), complete AS MATERIALIZED (
    SELECT held.workflow_id FROM held
    WHERE (SELECT count(*) FROM there) = (SELECT count(DISTINCT p.sha256) FROM unnest(%(parts)s::bytea[]) AS p (sha256))
), blob AS (
    -- An earlier release may have cut the same content otherwise: then the parts that it made stay.
    INSERT INTO outbox.blobs (sha256, size, parts)
    SELECT decode(%(blob)s::text, 'hex'), %(size)s::bigint, %(parts)s::bytea[] FROM complete
    ON CONFLICT (sha256) DO UPDATE SET loose = false
    RETURNING sha256, parts
), tight AS (
    UPDATE outbox.blob_parts AS p SET loose_since = NULL
    FROM there WHERE p.sha256 = there.sha256 AND there.loose_since IS NOT NULL
        AND there.sha256 IN (SELECT unnest(blob.parts) FROM blob)
), used AS (
    INSERT INTO outbox.blob_uses (workflow_id, sha256, entered)
    SELECT complete.workflow_id, blob.sha256, %(entered)s::bigint FROM complete, blob
    ON CONFLICT (workflow_id, sha256) DO UPDATE SET entered = excluded.entered, kept_until = clock_timestamp()
), made AS (
    INSERT INTO outbox.checkpoints (workflow_id, stage, entered, key, function, blob, attempt)
    SELECT complete.workflow_id, %(stage)s, %(entered)s::bigint, %(key)s::text, %(function)s::text, blob.sha256, %(attempt)s
    FROM complete, blob
    WHERE %(key)s::text IS NOT NULL
    ON CONFLICT DO NOTHING
    RETURNING key
)
SELECT EXISTS (SELECT FROM held), EXISTS (SELECT FROM complete), EXISTS (SELECT FROM made);

-- name: blob_parts
-- Returns the size of a blob, and the hashes of its parts in their order.
-- Reads blobs. Uses blobs_pkey.
SELECT b.size, b.parts FROM outbox.blobs AS b WHERE b.sha256 = decode(%(blob)s::text, 'hex');

-- name: blob_read
-- Returns the contents of the first of these parts, as many as have no more than `most` bytes, but one at least. Null: it isn't there.
-- Reads blob_parts. Uses blob_parts_pkey.
SELECT r.content
FROM (SELECT o.n, p.content, sum(length(p.content)) OVER (ORDER BY o.n) AS bytes
      FROM unnest(%(parts)s::bytea[]) WITH ORDINALITY AS o (sha256, n)
      LEFT JOIN outbox.blob_parts AS p ON p.sha256 = o.sha256) AS r
WHERE r.n = 1 OR r.bytes <= %(most)s
ORDER BY r.n;
