-- The queue: who must run what, who is running it, and what could not be run.

CREATE SEQUENCE outbox.job_ids AS bigint CACHE 1;

-- At most one live job a workflow: the key. Narrow, for the payload stays in workflow_states.
-- `id` is the order of claims. `version` is the workflow's version when it came into this status: with
-- the stage it names the work, the same in every attempt. `careful`: the job's worker died under it and
-- the next attempt is its last one, so it is not run beside others of its kind.
CREATE TABLE outbox.jobs (
    workflow_id uuid NOT NULL CONSTRAINT jobs_pkey PRIMARY KEY,
    id          bigint NOT NULL DEFAULT nextval('outbox.job_ids'),
    pipeline    text COLLATE "C" NOT NULL,
    stage       text COLLATE "C" NOT NULL,
    status      text COLLATE "C" NOT NULL,
    version     bigint NOT NULL,
    run_at      timestamptz NOT NULL DEFAULT now(),
    claimed_at  timestamptz,
    owner       integer,
    attempt     integer NOT NULL DEFAULT 0,
    due         boolean NOT NULL DEFAULT true,
    careful     boolean NOT NULL DEFAULT false,
    error       text
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 0);
ALTER SEQUENCE outbox.job_ids OWNED BY outbox.jobs.id;

CREATE INDEX jobs_ready_for_claim ON outbox.jobs (pipeline, stage, careful, id) WHERE owner IS NULL AND due;
CREATE INDEX jobs_scheduled ON outbox.jobs (run_at) INCLUDE (pipeline, stage, status) WHERE owner IS NULL AND NOT due;
CREATE INDEX jobs_running ON outbox.jobs (owner, id) WHERE owner IS NOT NULL;

CREATE TABLE outbox.dead_jobs (
    workflow_id uuid NOT NULL CONSTRAINT dead_jobs_pkey PRIMARY KEY,
    pipeline    text COLLATE "C" NOT NULL,
    entity_id   text COLLATE "C" NOT NULL,
    stage       text COLLATE "C" NOT NULL,
    status      text COLLATE "C" NOT NULL,
    version     bigint NOT NULL,
    attempts    integer NOT NULL,
    error       text NOT NULL,
    died_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_jobs_by_time ON outbox.dead_jobs (died_at);
CREATE INDEX dead_jobs_by_stage ON outbox.dead_jobs (pipeline, stage, status);

-- One row a process, with an id that no process had before. `watched`: the process holds the session
-- advisory lock of its id, so that its death shows at once. `idle`: wake it when there is work.
CREATE TABLE outbox.workers (
    id         integer NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT workers_pkey PRIMARY KEY,
    name       text NOT NULL,
    stages     text[] NOT NULL,
    lease      interval NOT NULL CONSTRAINT workers_lease_positive CHECK (lease > interval '0'),
    idle       boolean NOT NULL DEFAULT false,
    watched    boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL DEFAULT now(),
    beat_at    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
