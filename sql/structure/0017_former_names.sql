-- What the statuses of a pipeline were called before: the former names with the present ones. Code of before a rename still
-- says them of the children that it starts.
ALTER TABLE outbox.pipelines ADD COLUMN former_names jsonb NOT NULL DEFAULT '{}';
