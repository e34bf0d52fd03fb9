-- The application's own table. It has no unique key on purpose: had a post two effects, there would be two rows.
CREATE SCHEMA IF NOT EXISTS demo_crm;
CREATE TABLE IF NOT EXISTS demo_crm.posts (
    entity_id text NOT NULL,
    author    text NOT NULL,
    content   text NOT NULL,
    at        timestamptz NOT NULL DEFAULT now()
);
