-- What `outbox deploy` writes and the triggers read: which statuses a pipeline knows,
-- which stage takes which status, which changes are legal. A few rows a pipeline.

CREATE TABLE outbox.pipelines (
    pipeline       text COLLATE "C" CONSTRAINT pipelines_pkey PRIMARY KEY,
    initial_status text COLLATE "C" NOT NULL,
    definition     jsonb NOT NULL DEFAULT '{}',
    deployed_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE outbox.stages (
    pipeline     text COLLATE "C" NOT NULL,
    stage        text COLLATE "C" NOT NULL,
    max_attempts integer NOT NULL CONSTRAINT stages_max_attempts_positive CHECK (max_attempts > 0),
    CONSTRAINT stages_pkey PRIMARY KEY (pipeline, stage)
);

-- One row for every status that a pipeline knows. `stage` is null where a workflow waits for
-- people or has ended. `running` marks an in-progress status, which keeps the job it belongs to.
CREATE TABLE outbox.routes (
    pipeline text COLLATE "C" NOT NULL,
    status   text COLLATE "C" NOT NULL,
    stage    text COLLATE "C",
    running  boolean NOT NULL DEFAULT false,
    final    boolean NOT NULL DEFAULT false,
    CONSTRAINT routes_pkey PRIMARY KEY (pipeline, status)
);

CREATE TABLE outbox.legal_changes (
    pipeline    text COLLATE "C" NOT NULL,
    from_status text COLLATE "C" NOT NULL,
    to_status   text COLLATE "C" NOT NULL,
    CONSTRAINT legal_changes_pkey PRIMARY KEY (pipeline, from_status, to_status)
);
