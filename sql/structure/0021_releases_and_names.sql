-- Which release of the application a worker runs, and by which names signals were waited for.

ALTER TABLE outbox.workers ADD COLUMN release text CONSTRAINT workers_release_is_short CHECK (length(release) <= 200);

-- What handlers have waited for, at most 100 names of a pipeline: one that makes names of its own for each workflow has no
-- use for more.
CREATE TABLE outbox.signal_names (
    pipeline text COLLATE "C" NOT NULL,
    name     text COLLATE "C" NOT NULL,
    CONSTRAINT signal_names_pkey PRIMARY KEY (pipeline, name)
);
INSERT INTO outbox.signal_names (pipeline, name)
SELECT f.pipeline, f.name
FROM (
    SELECT k.pipeline, k.name, row_number() OVER (PARTITION BY k.pipeline ORDER BY k.name) AS place
    FROM (
        SELECT s.pipeline, s.name FROM outbox.signals AS s WHERE s.taken_at IS NOT NULL
        UNION
        SELECT v.pipeline, w.signal
        FROM outbox.waits AS w JOIN outbox.workflow_states AS v ON v.id = w.workflow_id
        WHERE w.signal IS NOT NULL
    ) AS k
) AS f
WHERE f.place <= 100;
