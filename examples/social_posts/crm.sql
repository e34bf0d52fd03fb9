-- The application's own tables. They have no unique key on purpose: if a post had two effects, there would be two rows.
CREATE SCHEMA IF NOT EXISTS demo_crm;
CREATE TABLE IF NOT EXISTS demo_crm.posts (
    entity_id text NOT NULL,
    author    text NOT NULL,
    content   text NOT NULL,
    at        timestamptz NOT NULL DEFAULT now()
);
-- With `--relay`, the consumer of the messages writes here. It has no unique key either.
CREATE TABLE IF NOT EXISTS demo_crm.enriched (
    entity_id text NOT NULL,
    sentiment float8 NOT NULL,
    at        timestamptz NOT NULL DEFAULT now()
);
