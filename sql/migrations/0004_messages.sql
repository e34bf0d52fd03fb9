-- The outbox: an insert-only log in a ring of fixed child tables. A message's id says which child
-- holds it: a million ids to a child, then the next, then around. The ring turns with its sequence,
-- so a writer looks nothing up, and turning it early is one setval() to the next multiple.

CREATE SEQUENCE outbox.message_ids AS bigint CACHE 1;

CREATE TABLE outbox.messages (
    id          bigint NOT NULL DEFAULT nextval('outbox.message_ids'),
    message_id  uuid NOT NULL DEFAULT outbox.uuid7(),
    topic       text COLLATE "C" NOT NULL CONSTRAINT messages_topic_not_empty CHECK (topic <> ''),
    key         text COLLATE "C",
    payload     jsonb,
    headers     jsonb,
    workflow_id uuid,
    created_at  timestamptz NOT NULL DEFAULT now()
) PARTITION BY LIST (((id / 1000000) % 4));
ALTER SEQUENCE outbox.message_ids OWNED BY outbox.messages.id;

CREATE TABLE outbox.messages_0 PARTITION OF outbox.messages FOR VALUES IN (0);
CREATE TABLE outbox.messages_1 PARTITION OF outbox.messages FOR VALUES IN (1);
CREATE TABLE outbox.messages_2 PARTITION OF outbox.messages FOR VALUES IN (2);
CREATE TABLE outbox.messages_3 PARTITION OF outbox.messages FOR VALUES IN (3);

-- For `outbox show`: the messages of one workflow.
CREATE INDEX messages_by_workflow ON outbox.messages (workflow_id) WHERE workflow_id IS NOT NULL;
