-- Contents that are too large for a row, cut into parts; contents that have parts in common share them.

-- `loose_since`: nothing may refer to the part since then. Null: a blob has it.
CREATE TABLE outbox.blob_parts (
    sha256      bytea NOT NULL CONSTRAINT blob_parts_pkey PRIMARY KEY,
    content     bytea NOT NULL,
    loose_since timestamptz DEFAULT clock_timestamp(),
    CONSTRAINT blob_parts_are_named_by_content CHECK (sha256 = sha256(content))
);
CREATE INDEX blob_parts_loose ON outbox.blob_parts (loose_since) WHERE loose_since IS NOT NULL;

-- A content: the hash of all of it, and its parts in their order. `loose` is set when a use of it ends, and makes the next
-- sweep look whether there is another one.
CREATE TABLE outbox.blobs (
    sha256 bytea NOT NULL CONSTRAINT blobs_pkey PRIMARY KEY,
    size   bigint NOT NULL,
    parts  bytea[] NOT NULL,
    loose  boolean NOT NULL DEFAULT false
);
CREATE INDEX blobs_by_part ON outbox.blobs USING gin (parts);
CREATE INDEX blobs_loose ON outbox.blobs (sha256) WHERE loose;

-- Which workflow uses which blob. `entered` names the work that has stored it, as in checkpoints: while that has a job, the
-- blob is used. After that it is used as long as the workflow's data, or a question, has its hash. Whether that is so is looked at an
-- hour after `kept_until`, which a look puts the further into the future the longer the blob has been used.
CREATE TABLE outbox.blob_uses (
    workflow_id uuid NOT NULL,
    sha256      bytea NOT NULL,
    entered     bigint NOT NULL,
    since       timestamptz NOT NULL DEFAULT clock_timestamp(),
    kept_until  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT blob_uses_pkey PRIMARY KEY (workflow_id, sha256),
    CONSTRAINT blob_uses_are_of_a_blob FOREIGN KEY (sha256) REFERENCES outbox.blobs (sha256)
);
CREATE INDEX blob_uses_by_blob ON outbox.blob_uses (sha256);
CREATE INDEX blob_uses_by_time ON outbox.blob_uses (kept_until);

-- A result that is large is a blob.
ALTER TABLE outbox.checkpoints
    ADD COLUMN blob bytea,
    ALTER COLUMN result DROP NOT NULL,
    ADD CONSTRAINT checkpoints_have_one_result CHECK (num_nonnulls(result, blob) = 1);
