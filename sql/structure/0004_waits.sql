-- What a workflow waits for besides a worker: a time, a person, a signal, its children. A wait is a status that no stage
-- takes; what ends it changes the status. Its timeout is the deadline of the workflow's one live job, which has no stage.

-- A question to a person, with its answer. It is open until `ended_at`; then `ended` says how it ended: decided, deadline,
-- or withdrawn (the status changed to something that was not an option). `shown` is the hash of the data that the question
-- is about.
CREATE TABLE outbox.approvals (
    id           uuid NOT NULL DEFAULT outbox.uuid7() CONSTRAINT approvals_pkey PRIMARY KEY,
    workflow_id  uuid NOT NULL,
    pipeline     text COLLATE "C" NOT NULL,
    entity_id    text COLLATE "C" NOT NULL,
    status       text COLLATE "C" NOT NULL,
    version      bigint NOT NULL,
    question     text NOT NULL,
    shown        text NOT NULL,
    options      jsonb NOT NULL,
    assignee     text,
    asked_at     timestamptz NOT NULL DEFAULT now(),
    deadline     timestamptz,
    remind_every interval,
    remind_at    timestamptz,
    reminders    integer NOT NULL DEFAULT 0,
    ended        text CONSTRAINT approvals_ended_how CHECK (ended IN ('decided', 'deadline', 'withdrawn')),
    decision     text,
    to_status    text COLLATE "C",
    decided_by   text,
    reason       text,
    edited       jsonb,
    ended_at     timestamptz,
    CONSTRAINT approvals_end_at_once CHECK ((ended IS NULL) = (ended_at IS NULL))
);
-- A workflow has at most one open question.
CREATE UNIQUE INDEX approvals_open ON outbox.approvals (workflow_id) WHERE ended_at IS NULL;
CREATE INDEX approvals_by_workflow ON outbox.approvals (workflow_id, version);
CREATE INDEX approvals_to_remind ON outbox.approvals (remind_at) WHERE ended_at IS NULL AND remind_at IS NOT NULL;

-- A workflow that waits for a signal, or for its children: `children` is how many of them have not ended. `to_status` is
-- where it goes then, or `on_failure` if a child ended in one of the statuses `failed`. `field` is where in the workflow's
-- data the signal's payload is kept.
CREATE TABLE outbox.waits (
    workflow_id uuid NOT NULL CONSTRAINT waits_pkey PRIMARY KEY,
    signal      text COLLATE "C",
    to_status   text COLLATE "C" NOT NULL,
    field       text,
    since       timestamptz NOT NULL DEFAULT now(),
    children    integer,
    failed      text[],
    on_failure  text COLLATE "C",
    CONSTRAINT waits_are_for_one_thing CHECK (num_nonnulls(signal, children) = 1)
);

-- What other systems tell a workflow: INSERT (pipeline, entity_id, name, payload, signal_id). A signal is kept until the
-- workflow waits for it. A second one with the same `signal_id` is ignored.
CREATE TABLE outbox.signals (
    id          bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT signals_pkey PRIMARY KEY,
    workflow_id uuid NOT NULL,
    pipeline    text COLLATE "C" NOT NULL,
    entity_id   text COLLATE "C" NOT NULL,
    name        text COLLATE "C" NOT NULL,
    payload     jsonb,
    signal_id   text COLLATE "C",
    sent_by     text NOT NULL,
    sent_at     timestamptz NOT NULL DEFAULT now(),
    taken_at    timestamptz,
    CONSTRAINT signals_are_one_by_id UNIQUE (workflow_id, name, signal_id)
);
CREATE INDEX signals_to_take ON outbox.signals (workflow_id, name, id) WHERE taken_at IS NULL;
