-- The queue: what must run, which worker runs it, and what could not be run.

CREATE SEQUENCE outbox.job_ids AS bigint CACHE 1;

-- The key allows one live job per workflow. The row is narrow, for the payload stays in workflow_states. `id` is the order
-- of claims. `entered` is the workflow's version when it came into this status: with the stage it names the work, and is
-- the same in every attempt. `careful`: a worker died under this job and the next attempt is its last one, so it runs apart
-- from other careful jobs.
-- `deadline` is when the workflow moves to `on_deadline` unless it has moved before, whatever its stage does meanwhile. A
-- job without a stage is nothing but a deadline; no index that claims or promotion use has it.
-- `partition` is the share of a limited stage that the job belongs to, '' where the stage has no partitions; null: the
-- stage is not limited. Within a partition a higher `priority` goes first.
-- `progress` is what the handler last reported.
CREATE TABLE outbox.jobs (
    workflow_id uuid NOT NULL CONSTRAINT jobs_pkey PRIMARY KEY,
    id          bigint NOT NULL DEFAULT nextval('outbox.job_ids'),
    pipeline    text COLLATE "C" NOT NULL,
    stage       text COLLATE "C",
    status      text COLLATE "C" NOT NULL,
    entered     bigint NOT NULL,
    run_at      timestamptz NOT NULL DEFAULT now(),
    claimed_at  timestamptz,
    owner       integer,
    attempt     integer NOT NULL DEFAULT 0,
    due         boolean NOT NULL DEFAULT true,
    careful     boolean NOT NULL DEFAULT false,
    error       text,
    deadline    timestamptz,
    on_deadline text COLLATE "C",
    progress    text,
    partition   text COLLATE "C",
    priority    integer,
    -- Before Postgres 17 the age of an infinite time is an error, over which the sweep and outbox.overview would fail.
    CONSTRAINT jobs_run_at_finite CHECK (isfinite(run_at)),
    CONSTRAINT jobs_deadline_leads_somewhere CHECK ((deadline IS NULL) = (on_deadline IS NULL)),
    CONSTRAINT jobs_have_a_stage_or_a_deadline CHECK (stage IS NOT NULL OR deadline IS NOT NULL)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 0);
ALTER SEQUENCE outbox.job_ids OWNED BY outbox.jobs.id;

CREATE INDEX jobs_ready_for_claim ON outbox.jobs (pipeline, stage, careful, id) WHERE owner IS NULL AND due;
CREATE INDEX jobs_running ON outbox.jobs (owner, id) WHERE owner IS NOT NULL;
CREATE INDEX jobs_with_deadline ON outbox.jobs (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX jobs_scheduled ON outbox.jobs (run_at) INCLUDE (pipeline, stage, status)
    WHERE owner IS NULL AND NOT due AND stage IS NOT NULL;
-- Its condition is written so that no other index can stand in for it: a claim that was planned when the table was empty
-- would take jobs_ready_for_claim, which costs the same then, and later sort everything that waits.
CREATE INDEX jobs_ready_by_partition ON outbox.jobs (pipeline, stage, partition, priority DESC, id)
    WHERE CASE WHEN owner IS NULL AND due THEN partition IS NOT NULL END;
CREATE INDEX jobs_running_by_partition ON outbox.jobs (pipeline, stage, partition)
    WHERE owner IS NOT NULL AND partition IS NOT NULL;

CREATE TABLE outbox.dead_jobs (
    workflow_id uuid NOT NULL CONSTRAINT dead_jobs_pkey PRIMARY KEY,
    pipeline    text COLLATE "C" NOT NULL,
    entity_id   text COLLATE "C" NOT NULL,
    stage       text COLLATE "C" NOT NULL,
    status      text COLLATE "C" NOT NULL,
    entered     bigint NOT NULL,
    attempts    integer NOT NULL,
    error       text NOT NULL,
    died_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_jobs_by_time ON outbox.dead_jobs (died_at);
CREATE INDEX dead_jobs_by_stage ON outbox.dead_jobs (pipeline, stage, status);

-- One row for each process, with an id that no process had before. `watched`: the process holds the session advisory lock
-- of its id, so that its death shows at once. `idle`: wake it when there is work.
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

-- When the next attempt of a partition may start, where that is in the future; a row whose time has passed means nothing.
CREATE TABLE outbox.partition_rates (
    pipeline  text COLLATE "C" NOT NULL,
    stage     text COLLATE "C" NOT NULL,
    partition text COLLATE "C" NOT NULL,
    next_at   timestamptz NOT NULL,
    CONSTRAINT partition_rates_pkey PRIMARY KEY (pipeline, stage, partition)
) WITH (fillfactor = 70);

-- Results of calls that should not be made again. The next attempt at the same work is given them. `entered` is the
-- workflow's version when it came to the stage: with the stage it names the work, as idempotency keys do.
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
