-- Who wants to know of changes to a status: NOTIFY on one channel, "outbox.status", for the statuses that a pipeline names. One
-- channel, because Postgres wakes every session of the database that listens to any. A notification has up to 8,000 bytes, which
-- the longest names and entity don't come near. At its COMMIT it takes a lock over the whole cluster: no status is notified of
-- unless the pipeline asks for it.
CREATE OR REPLACE FUNCTION outbox.statuses_notify(ids uuid[], pipelines text[], tos text[], versions bigint[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_notify('outbox.status', json_build_object(
        'pipeline', c.pipeline, 'entity_id', w.entity_id, 'status', c.to_status, 'version', c.version)::text)
    FROM unnest(ids, pipelines, tos, versions) AS c (id, pipeline, to_status, version)
    JOIN outbox.routes AS r ON r.pipeline = c.pipeline AND r.status = c.to_status AND r.notify
    CROSS JOIN LATERAL (SELECT w.entity_id FROM outbox.workflow_states AS w WHERE w.id = c.id OFFSET 0) AS w;
END
$$;
COMMENT ON FUNCTION outbox.statuses_notify(uuid[], text[], text[], bigint[]) IS
    'Internal: notifies of changes to the statuses that pipelines name.';
REVOKE EXECUTE ON FUNCTION outbox.statuses_notify(uuid[], text[], text[], bigint[]) FROM PUBLIC;
