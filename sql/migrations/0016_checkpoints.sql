-- Results of calls that should not be made again, as an attempt made them; the next attempt at the same work is given them.
-- `entered` is the workflow's version when it came to the stage: with the stage it names the work, as idempotency keys do.
CREATE TABLE outbox.checkpoints (
    workflow_id uuid NOT NULL,
    stage       text COLLATE "C" NOT NULL,
    entered     bigint NOT NULL,
    key         text COLLATE "C" NOT NULL,
    function    text NOT NULL,
    result      jsonb NOT NULL,
    attempt     integer NOT NULL,
    made_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT checkpoints_pkey PRIMARY KEY (workflow_id, entered, stage, key)
);
CREATE INDEX checkpoints_by_time ON outbox.checkpoints USING brin (made_at) WITH (autosummarize = on);

-- How far a handler says that it is.
ALTER TABLE outbox.jobs ADD COLUMN progress text;
