-- What a deploy writes of a pipeline beside its routes.

-- `cancelled` is the status to which a workflow can be cancelled from any that is not final; null: it can't be. `plain` is
-- the version of the data that writers without `$version` send: null and 1 need no mark. `renaming` is set only within the
-- transaction of a deploy that renames statuses: the old names with the new ones.
ALTER TABLE outbox.pipelines
    ADD COLUMN cancelled text COLLATE "C",
    ADD COLUMN plain integer CONSTRAINT pipelines_plain_is_a_version CHECK (plain BETWEEN 1 AND 10000),
    ADD COLUMN renaming jsonb;
