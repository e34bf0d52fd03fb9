-- What a deploy that renames a status does to its workflows. Only the trigger workflows_changed() calls it.

-- Renames a status in what belongs to these workflows: position n of each array is one workflow. Their jobs, questions, waits
-- and deadlines go on, and nothing reacts. Returns false, and does nothing, unless a deploy of this transaction renames it.
CREATE OR REPLACE FUNCTION outbox.workflows_renamed(
    ids uuid[], pipelines text[], froms text[], tos text[], versions bigint[], actor text
) RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM unnest(pipelines, froms, tos) AS c (pipeline, from_status, to_status)
               WHERE NOT EXISTS (SELECT FROM outbox.pipelines AS p
                                 WHERE p.pipeline = c.pipeline AND p.renaming ->> c.from_status = c.to_status)) THEN
        RETURN false;
    END IF;
    UPDATE outbox.jobs AS j SET status = c.to_status
    FROM unnest(ids, tos) AS c (id, to_status) WHERE j.workflow_id = c.id AND j.workflow_id = ANY (ids);
    UPDATE outbox.dead_jobs AS d SET status = c.to_status
    FROM unnest(ids, tos) AS c (id, to_status) WHERE d.workflow_id = c.id AND d.workflow_id = ANY (ids);
    UPDATE outbox.resting AS r SET status = c.to_status
    FROM unnest(ids, tos) AS c (id, to_status) WHERE r.workflow_id = c.id AND r.workflow_id = ANY (ids);
    UPDATE outbox.approvals AS a SET status = c.to_status
    FROM unnest(ids, tos) AS c (id, to_status)
    WHERE a.workflow_id = c.id AND a.workflow_id = ANY (ids) AND a.ended_at IS NULL;
    INSERT INTO outbox.state_changes (workflow_id, from_status, to_status, version, actor, reason)
    SELECT c.id, c.from_status, c.to_status, c.version, actor, 'renamed'
    FROM unnest(ids, froms, tos, versions) AS c (id, from_status, to_status, version);
    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT c.pipeline, s.status, sum(s.workflows)
    FROM unnest(pipelines, froms, tos) AS c (pipeline, from_status, to_status)
    CROSS JOIN LATERAL (VALUES (c.from_status, -1), (c.to_status, 1)) AS s (status, workflows)
    GROUP BY c.pipeline, s.status;
    RETURN true;
END
$$;
COMMENT ON FUNCTION outbox.workflows_renamed(uuid[], text[], text[], text[], bigint[], text) IS
    'Internal: renames a status in what belongs to these workflows, if a deploy of this transaction renames it.';
REVOKE EXECUTE ON FUNCTION outbox.workflows_renamed(uuid[], text[], text[], text[], bigint[], text) FROM PUBLIC;
