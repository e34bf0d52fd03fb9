-- Workflows that another one has spawned: fan-out, and the join in which their parent waits for them.

-- `cancel_to`: where the child moves when its parent ends before it; null: it goes on alone.
CREATE TABLE outbox.children (
    child_id  uuid NOT NULL CONSTRAINT children_pkey PRIMARY KEY,
    parent_id uuid NOT NULL,
    cancel_to text COLLATE "C"
);
CREATE INDEX children_by_parent ON outbox.children (parent_id);

-- Parents that have ended while children of theirs are at work: any worker cancels these, and forgets the row. Not the
-- parent's own transaction: children lock upwards, and whoever locks downwards meets them.
CREATE TABLE outbox.orphans (
    parent_id uuid NOT NULL CONSTRAINT orphans_pkey PRIMARY KEY
);

-- A wait is for a signal, or for children: how many are still at work. With one that ended in a status of `failed` the
-- workflow moves to `on_failure`.
ALTER TABLE outbox.waits ALTER COLUMN signal DROP NOT NULL,
    ADD COLUMN children integer,
    ADD COLUMN failed text[],
    ADD COLUMN on_failure text COLLATE "C",
    ADD CONSTRAINT waits_are_for_one_thing CHECK (num_nonnulls(signal, children) = 1);

-- Moves a parent all of whose children have ended. Its row is locked by whoever calls.
CREATE FUNCTION outbox.children_join(parent uuid) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    before text := coalesce(current_setting('outbox.reason', true), '');
BEGIN
    PERFORM set_config('outbox.reason', 'its children have ended', true);
    UPDATE outbox.workflow_states AS p
    SET current_status = CASE WHEN wait.on_failure IS NOT NULL AND EXISTS (
            SELECT FROM outbox.children AS c JOIN outbox.workflow_states AS w ON w.id = c.child_id
            WHERE c.parent_id = parent AND w.current_status = ANY (wait.failed)) THEN wait.on_failure ELSE wait.to_status END
    FROM outbox.waits AS wait
    WHERE p.id = parent AND wait.workflow_id = parent AND wait.children <= 0;
    PERFORM set_config('outbox.reason', before, true);
END
$$;

-- Counts children down that have ended. The parent's row is locked before its wait is looked at, so the last two of a
-- hundred that end at once see each other, and the beginning of the wait sees them or is seen.
CREATE FUNCTION outbox.children_end(ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    family  record;
    at_work integer;
BEGIN
    FOR family IN
        SELECT c.parent_id, count(*)::integer AS ended FROM outbox.children AS c
        WHERE c.child_id = ANY (ids) GROUP BY c.parent_id ORDER BY c.parent_id
    LOOP
        PERFORM FROM outbox.workflow_states AS w WHERE w.id = family.parent_id FOR NO KEY UPDATE;
        UPDATE outbox.waits AS w SET children = w.children - family.ended
        WHERE w.workflow_id = family.parent_id AND w.children IS NOT NULL
        RETURNING w.children INTO at_work;
        IF NOT FOUND THEN
            -- A wait that begins at a higher isolation level would not see this: its commit must fail, and be tried again.
            UPDATE outbox.workflow_states AS w SET updated_at = w.updated_at WHERE w.id = family.parent_id;
        ELSIF at_work <= 0 THEN
            PERFORM outbox.children_join(family.parent_id);
        END IF;
    END LOOP;
    INSERT INTO outbox.orphans (parent_id)
    SELECT DISTINCT c.parent_id FROM outbox.children AS c
    WHERE c.parent_id = ANY (ids) AND c.cancel_to IS NOT NULL
    ON CONFLICT DO NOTHING;
END
$$;

REVOKE EXECUTE ON FUNCTION outbox.children_join(uuid), outbox.children_end(uuid[]) FROM PUBLIC;
