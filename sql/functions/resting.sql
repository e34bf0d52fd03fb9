-- What lists are read by: which workflows rest, and the kinds of errors.

-- Notes that workflows have come to rest: those of these that are in a status that no stage takes, and that is not final.
-- Each is noted by its present status, whatever it was when this was asked for.
CREATE OR REPLACE FUNCTION outbox.rest_begin(ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO outbox.resting (workflow_id, pipeline, status)
    SELECT w.id, w.pipeline, w.current_status
    FROM unnest(ids) AS i (id)
    CROSS JOIN LATERAL (SELECT w.id, w.pipeline, w.current_status FROM outbox.workflow_states AS w WHERE w.id = i.id OFFSET 0) AS w
    JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
    WHERE r.stage IS NULL AND NOT r.final
    ORDER BY w.id
    ON CONFLICT (workflow_id) DO UPDATE SET status = excluded.status, place = excluded.place, since = excluded.since
    WHERE resting.status <> excluded.status;
END
$$;
COMMENT ON FUNCTION outbox.rest_begin(uuid[]) IS 'Internal: notes that workflows have come to rest.';
REVOKE EXECUTE ON FUNCTION outbox.rest_begin(uuid[]) FROM PUBLIC;

-- Whatever the statement says of them. A job that takes the place of a dead one of the same workflow keeps that place.
CREATE OR REPLACE FUNCTION outbox.dead_job_placed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.kind := outbox.error_kind(NEW.error);
    NEW.place := CASE TG_OP WHEN 'INSERT' THEN nextval('outbox.job_ids') ELSE OLD.place END;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION outbox.dead_job_placed() IS 'Internal: gives a dead job its place in lists, and its error a kind.';

-- Counts dead jobs by the kind of their error, as differences: appending takes no lock that two workers could meet on.
CREATE OR REPLACE FUNCTION outbox.dead_jobs_counted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO outbox.dead_counts (pipeline, stage, status, kind, jobs)
        SELECT o.pipeline, o.stage, o.status, o.kind, -count(*) FROM old_rows AS o GROUP BY o.pipeline, o.stage, o.status, o.kind;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO outbox.dead_counts (pipeline, stage, status, kind, jobs, at)
        SELECT n.pipeline, n.stage, n.status, n.kind, count(*), max(n.died_at)
        FROM new_rows AS n GROUP BY n.pipeline, n.stage, n.status, n.kind;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.dead_jobs_counted() IS 'Internal: counts dead jobs by the kind of their error.';
