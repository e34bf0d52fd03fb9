-- What `outbox deploy` writes and the triggers read: which statuses a pipeline knows, which stage takes which status, and
-- which changes are legal. A few rows for each pipeline.

-- `reaction_of`: the pipeline whose changes this one reacts to.
CREATE TABLE outbox.pipelines (
    pipeline       text COLLATE "C" CONSTRAINT pipelines_pkey PRIMARY KEY,
    initial_status text COLLATE "C" NOT NULL,
    definition     jsonb NOT NULL DEFAULT '{}',
    deployed_at    timestamptz NOT NULL DEFAULT now(),
    reaction_of    text COLLATE "C"
);

CREATE TABLE outbox.stages (
    pipeline     text COLLATE "C" NOT NULL,
    stage        text COLLATE "C" NOT NULL,
    max_attempts integer NOT NULL CONSTRAINT stages_max_attempts_positive CHECK (max_attempts > 0),
    CONSTRAINT stages_pkey PRIMARY KEY (pipeline, stage)
);

-- One row for each status that a pipeline knows. `stage` is null where a workflow waits or has ended. `running` marks the
-- in-progress status of a stage: the job of that stage goes on in it. `deadline` is how long a workflow may stay in the
-- status before it moves to `on_deadline`. `partition` and `priority` are paths into the workflow's data; `partition` is
-- null where the stage is not limited, and empty where it is limited and has no partitions.
CREATE TABLE outbox.routes (
    pipeline    text COLLATE "C" NOT NULL,
    status      text COLLATE "C" NOT NULL,
    stage       text COLLATE "C",
    running     boolean NOT NULL DEFAULT false,
    final       boolean NOT NULL DEFAULT false,
    deadline    interval,
    on_deadline text COLLATE "C",
    reactions   text[],
    partition   text[],
    priority    text[],
    CONSTRAINT routes_pkey PRIMARY KEY (pipeline, status),
    CONSTRAINT routes_deadline_leads_somewhere CHECK ((deadline IS NULL) = (on_deadline IS NULL))
);

CREATE TABLE outbox.legal_changes (
    pipeline    text COLLATE "C" NOT NULL,
    from_status text COLLATE "C" NOT NULL,
    to_status   text COLLATE "C" NOT NULL,
    CONSTRAINT legal_changes_pkey PRIMARY KEY (pipeline, from_status, to_status)
);

-- One row for each stage that is limited. A claim locks the row first, so claims of a stage follow one another and each
-- sees what those before it have taken. Running jobs are counted, not remembered, so no crash makes the number wrong.
-- Rates are per second. `next_at` is the first free start time, `served` the round-robin cursor: the partition that was
-- served last.
CREATE TABLE outbox.limits (
    pipeline              text COLLATE "C" NOT NULL,
    stage                 text COLLATE "C" NOT NULL,
    concurrency           integer,
    rate                  float8,
    partition_concurrency integer,
    partition_rate        float8,
    partitioned           boolean NOT NULL,
    next_at               timestamptz NOT NULL DEFAULT '-infinity',
    served                text COLLATE "C" NOT NULL DEFAULT '',
    CONSTRAINT limits_pkey PRIMARY KEY (pipeline, stage),
    CONSTRAINT limits_let_something_begin CHECK (concurrency >= 1 AND partition_concurrency >= 1),
    CONSTRAINT limits_rates_in_range CHECK (rate > 0 AND rate <= 1e6 AND partition_rate > 0 AND partition_rate <= 1e6)
) WITH (fillfactor = 50);

-- Stages that no worker claims for until they are resumed: INSERT pauses, DELETE resumes. Running jobs go on.
CREATE TABLE outbox.pauses (
    pipeline  text COLLATE "C" NOT NULL,
    stage     text COLLATE "C" NOT NULL,
    paused_by text NOT NULL DEFAULT outbox.actor(),
    reason    text,
    paused_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pauses_pkey PRIMARY KEY (pipeline, stage)
);

-- Cron schedules. The row is locked while the schedule's function runs, in the transaction that moves `next_at` on, so each
-- tick has its effect once, on whichever worker takes it first. `attempts`, `retry_at` and `error` belong to the tick at
-- `next_at`: how often it has failed, when it is tried again, and why.
CREATE TABLE outbox.schedules (
    pipeline text COLLATE "C" NOT NULL,
    schedule text COLLATE "C" NOT NULL,
    cron     text NOT NULL,
    timezone text NOT NULL,
    catch_up boolean NOT NULL,
    next_at  timestamptz NOT NULL,
    last_at  timestamptz,
    ran_at   timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    retry_at timestamptz,
    error    text,
    CONSTRAINT schedules_pkey PRIMARY KEY (pipeline, schedule)
) WITH (fillfactor = 50);
