-- What lists are read by: an index leads to every workflow that has not ended. Those with a job or a dead one have a row
-- already; `resting` has the others.

-- Workflows in a status that no stage takes and that is not final. Not an index of workflow_states: its updates would no
-- longer be HOT. `place` is drawn from the sequence of the jobs' ids, so the two give one order: a workflow that moves on
-- always gets a later place, and a list that is read page by page misses none.
CREATE TABLE outbox.resting (
    workflow_id uuid NOT NULL CONSTRAINT resting_pkey PRIMARY KEY,
    place       bigint NOT NULL DEFAULT nextval('outbox.job_ids'),
    pipeline    text COLLATE "C" NOT NULL,
    status      text COLLATE "C" NOT NULL,
    since       timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE INDEX resting_by_status ON outbox.resting (pipeline, status, place);
INSERT INTO outbox.resting (workflow_id, pipeline, status, since)
SELECT w.id, w.pipeline, w.current_status, w.updated_at
FROM outbox.workflow_states AS w
JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
WHERE r.stage IS NULL AND NOT r.final
ORDER BY w.id;

-- Jobs that are put off, for lists of one status. No claim and no commit writes it.
CREATE INDEX jobs_scheduled_by_status ON outbox.jobs (pipeline, status, id)
    WHERE owner IS NULL AND NOT due AND stage IS NOT NULL;

-- A dead job's place, as above, and the kind of its error: the error without ids and numbers. A trigger sets both.
ALTER TABLE outbox.dead_jobs
    ADD COLUMN kind text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN place bigint NOT NULL DEFAULT 0;
UPDATE outbox.dead_jobs AS d SET kind = outbox.error_kind(d.error), place = o.place
FROM (SELECT o.workflow_id, nextval('outbox.job_ids') AS place
      FROM (SELECT d.workflow_id FROM outbox.dead_jobs AS d ORDER BY d.died_at) AS o) AS o
WHERE d.workflow_id = o.workflow_id;
-- None for a pipeline alone: the planner would take it, and look for a rare status among all of a pipeline.
DROP INDEX outbox.dead_jobs_by_stage;
CREATE INDEX dead_jobs_by_status ON outbox.dead_jobs (pipeline, status, place);
CREATE INDEX dead_jobs_by_kind ON outbox.dead_jobs (pipeline, kind, place);

-- How many dead jobs there are of each kind of error. `dead_counts` is a log of differences, as status_counts is:
-- maintenance folds it into error_kinds.
CREATE TABLE outbox.dead_counts (
    pipeline text COLLATE "C" NOT NULL,
    stage    text COLLATE "C" NOT NULL,
    status   text COLLATE "C" NOT NULL,
    kind     text COLLATE "C" NOT NULL,
    jobs     bigint NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE outbox.dead_counts REPLICA IDENTITY FULL;
CREATE TABLE outbox.error_kinds (
    pipeline text COLLATE "C" NOT NULL,
    stage    text COLLATE "C" NOT NULL,
    status   text COLLATE "C" NOT NULL,
    kind     text COLLATE "C" NOT NULL,
    jobs     bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at  timestamptz NOT NULL,
    CONSTRAINT error_kinds_pkey PRIMARY KEY (pipeline, stage, status, kind)
) WITH (fillfactor = 70);
INSERT INTO outbox.error_kinds (pipeline, stage, status, kind, jobs, first_at, last_at)
SELECT d.pipeline, d.stage, d.status, d.kind, count(*), min(d.died_at), max(d.died_at)
FROM outbox.dead_jobs AS d GROUP BY d.pipeline, d.stage, d.status, d.kind;

-- How many workflows came into each status in each minute, and how many left it. The log of differences has it: `came` is
-- how many came, so as many as `came - workflows` left. A row without `came` is a sum, or tells of workflows that were
-- deleted.
ALTER TABLE outbox.status_counts ADD COLUMN came bigint, ADD COLUMN at timestamptz;
ALTER TABLE outbox.status_counts ALTER COLUMN at SET DEFAULT clock_timestamp();
CREATE TABLE outbox.status_flow (
    minute   timestamptz NOT NULL,
    pipeline text COLLATE "C" NOT NULL,
    status   text COLLATE "C" NOT NULL,
    came     bigint NOT NULL,
    went     bigint NOT NULL,
    CONSTRAINT status_flow_pkey PRIMARY KEY (minute, pipeline, status)
) WITH (fillfactor = 70);

-- Open questions, the oldest first: all, those of a pipeline, those of an assignee.
CREATE INDEX approvals_open_by_time ON outbox.approvals (id) WHERE ended_at IS NULL;
CREATE INDEX approvals_open_by_pipeline ON outbox.approvals (pipeline, id) WHERE ended_at IS NULL;
CREATE INDEX approvals_open_by_assignee ON outbox.approvals (assignee, id) WHERE ended_at IS NULL AND assignee IS NOT NULL;
