-- Several open questions a workflow, who may answer them, and links by which one person answers one of them.

ALTER TABLE outbox.approvals
    ADD COLUMN name          text COLLATE "C",
    ADD COLUMN data          jsonb,
    ADD COLUMN own_data      boolean NOT NULL DEFAULT false,
    ADD COLUMN edits_allowed boolean NOT NULL DEFAULT true,
    ADD COLUMN ends_wait     text[],
    ADD COLUMN stage         text COLLATE "C",
    ADD COLUMN worker        text,
    ADD COLUMN asked_by      text,
    ADD COLUMN asked_login   text,
    ADD COLUMN approvers     jsonb,
    ADD COLUMN alone         text[],
    ADD COLUMN votes         integer NOT NULL DEFAULT 0,
    ADD COLUMN escalate_at   timestamptz,
    ADD COLUMN escalate_to   text,
    ADD COLUMN escalated_at  timestamptz;

-- A workflow may have several open questions; those that have a name differ in it.
DROP INDEX outbox.approvals_open;
CREATE INDEX approvals_open ON outbox.approvals (workflow_id) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX approvals_open_by_name ON outbox.approvals (workflow_id, name) WHERE ended_at IS NULL AND name IS NOT NULL;
CREATE INDEX approvals_to_escalate ON outbox.approvals (escalate_at) WHERE ended_at IS NULL AND escalate_at IS NOT NULL;

-- A vote is for the person who counts. `cast_by` has cast it: the person, or the one to whom that person has delegated. A person
-- counts once, and casts one vote. `groups` are those of the question's approvers in which the person counts, and `shown`
-- is the hash of the data that the vote is about: after a change of the data it counts no more.
CREATE TABLE outbox.approval_votes (
    approval_id uuid NOT NULL,
    person      text NOT NULL,
    cast_by     text NOT NULL,
    login       text NOT NULL DEFAULT session_user,
    option      text NOT NULL,
    groups      text[] NOT NULL,
    shown       text NOT NULL,
    reason      text,
    voted_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT approval_votes_pkey PRIMARY KEY (approval_id, person),
    CONSTRAINT approval_votes_are_cast_once UNIQUE (approval_id, cast_by)
);

-- Until its end, `to_person` may vote in place of `from_person`. `groups` are those that an application knows them to be in;
-- null: those of the database role of that name.
CREATE TABLE outbox.delegations (
    from_person text NOT NULL,
    to_person   text NOT NULL,
    until       timestamptz NOT NULL,
    groups      text[],
    reason      text,
    since       timestamptz NOT NULL DEFAULT clock_timestamp(),
    login       text NOT NULL DEFAULT session_user,
    CONSTRAINT delegations_pkey PRIMARY KEY (to_person, from_person),
    CONSTRAINT delegations_are_to_another CHECK (from_person <> to_person)
);

-- A link by which one person answers one question, once, until its end. What is sent to the person is its id with a signature,
-- by a key that the database doesn't have.
CREATE TABLE outbox.approval_links (
    id          uuid NOT NULL DEFAULT outbox.uuid7() CONSTRAINT approval_links_pkey PRIMARY KEY,
    approval_id uuid NOT NULL,
    person      text NOT NULL,
    groups      text[],
    until       timestamptz NOT NULL,
    made_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    login       text NOT NULL DEFAULT session_user,
    decision    text,
    used_at     timestamptz,
    CONSTRAINT approval_links_are_used_at_once CHECK ((decision IS NULL) = (used_at IS NULL))
);
CREATE INDEX approval_links_by_question ON outbox.approval_links (approval_id);

-- Replaced with other parameters.
DROP FUNCTION IF EXISTS outbox.decide(text, text, text, text, text, jsonb, text);
DROP FUNCTION IF EXISTS outbox.workflow_move(uuid, text, text, text, text, jsonb);
