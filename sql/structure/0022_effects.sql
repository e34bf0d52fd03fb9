-- Effects: calls that must not happen twice, such as a payment.

-- What is known of each: the intention is committed before the call, and its result after it. `entered` is the workflow's
-- version when it came into its status, which names the work whatever its stage is called. `call` is the last call, `calls`
-- how many there were, and `attempt` is the one that has made the last. An effect that stays 'started' is unknown: its
-- attempt has ended without a result, or the function has raised `error`.
CREATE TABLE outbox.effects (
    workflow_id uuid NOT NULL,
    entered     bigint NOT NULL,
    name        text COLLATE "C" NOT NULL,
    stage       text COLLATE "C" NOT NULL,
    function    text NOT NULL,
    call        uuid NOT NULL,
    calls       integer NOT NULL DEFAULT 1,
    attempt     integer NOT NULL,
    state       text NOT NULL DEFAULT 'started' CONSTRAINT effects_state_known CHECK (state IN ('started', 'done', 'not done')),
    result      jsonb,
    error       text,
    known_by    text,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at    timestamptz,
    CONSTRAINT effects_pkey PRIMARY KEY (workflow_id, entered, name)
);
CREATE INDEX effects_by_time ON outbox.effects (started_at);
CREATE INDEX effects_started ON outbox.effects (started_at) WHERE state = 'started';

-- A question about a call: its answer is of what has happened, and has the job run again. The status stays.
ALTER TABLE outbox.approvals ADD COLUMN effect uuid;

-- A job is not due and will not be as long as it waits for such an answer: null. So no index that claims or promotion use has it.
ALTER TABLE outbox.jobs ALTER COLUMN due DROP NOT NULL;
CREATE INDEX jobs_parked ON outbox.jobs (pipeline, status, id) WHERE due IS NULL;
