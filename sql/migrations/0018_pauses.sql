-- Stages that nobody claims for until they are resumed: INSERT pauses, DELETE resumes. What runs already goes on.
CREATE TABLE outbox.pauses (
    pipeline  text COLLATE "C" NOT NULL,
    stage     text COLLATE "C" NOT NULL,
    paused_by text NOT NULL DEFAULT outbox.actor(),
    reason    text,
    paused_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pauses_pkey PRIMARY KEY (pipeline, stage)
);
