-- What programs in any language call and read.

-- What people do that changes no status, and so is not in the history: a stage is paused or resumed, a dead job runs again.
-- Only triggers and functions write it. `stage` is the stage that was paused or resumed, or that of the new job.
CREATE TABLE outbox.actions (
    id          uuid NOT NULL DEFAULT outbox.uuid7() CONSTRAINT actions_pkey PRIMARY KEY,
    action      text NOT NULL CONSTRAINT actions_are_known CHECK (action IN ('pause', 'resume', 'retry')),
    pipeline    text COLLATE "C" NOT NULL,
    stage       text COLLATE "C",
    workflow_id uuid,
    actor       text NOT NULL DEFAULT outbox.actor(),
    login       text NOT NULL DEFAULT session_user,
    reason      text,
    at          timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX actions_by_time ON outbox.actions (at);
CREATE INDEX actions_by_workflow ON outbox.actions (workflow_id) WHERE workflow_id IS NOT NULL;

-- Both take who asks, and why. The functions of now have more parameters, with defaults.
DROP FUNCTION IF EXISTS outbox.retry(uuid[]);
DROP FUNCTION IF EXISTS outbox.retry(text, text);

-- What the data of a pipeline is, for programs in other languages. `door` is what is checked of the data that they write, where
-- the pipeline wants it: the version that it is for, the JSON types of the data, and its fields by the names that are accepted.
ALTER TABLE outbox.pipelines
    ADD COLUMN json_schema jsonb,
    ADD COLUMN data_version integer,
    ADD COLUMN door jsonb;

-- Whether a change to the status sends a notification.
ALTER TABLE outbox.routes ADD COLUMN notify boolean NOT NULL DEFAULT false;
