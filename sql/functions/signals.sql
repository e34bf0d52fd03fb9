-- What other systems tell a workflow. These functions run as the owner; only triggers call them.

-- Moves those of these workflows whose signal is there; each takes one, the oldest.
CREATE OR REPLACE FUNCTION outbox.signals_take(ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    taken record;
BEGIN
    -- One at a time: the history tells each by its own name.
    FOR taken IN
        SELECT DISTINCT ON (w.workflow_id) w.workflow_id, w.to_status, w.field, s.id, s.name, s.payload
        FROM outbox.waits AS w
        JOIN outbox.signals AS s ON s.workflow_id = w.workflow_id AND s.name = w.signal AND s.taken_at IS NULL
        WHERE w.workflow_id = ANY (ids)
        ORDER BY w.workflow_id, s.id
    LOOP
        UPDATE outbox.signals AS s SET taken_at = clock_timestamp() WHERE s.id = taken.id;
        PERFORM outbox.workflow_move(taken.workflow_id, taken.to_status, 'signal ' || taken.name, data => CASE
            WHEN taken.field IS NOT NULL THEN (
                SELECT w.metadata || jsonb_build_object(taken.field, taken.payload)
                FROM outbox.workflow_states AS w WHERE w.id = taken.workflow_id) END);
    END LOOP;
END
$$;
COMMENT ON FUNCTION outbox.signals_take(uuid[]) IS 'Internal: moves workflows whose signal is there.';

-- Begins the waits for signals that handlers have returned: items with a `signal`. It may be there already.
CREATE OR REPLACE FUNCTION outbox.signals_begin(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    waiting uuid[];
BEGIN
    WITH made AS (
        INSERT INTO outbox.waits (workflow_id, signal, to_status, field)
        SELECT i.id, i.signal, i.to_status, i.field
        FROM jsonb_to_recordset(items) AS i (id uuid, signal text, to_status text, field text)
        WHERE i.signal IS NOT NULL AND i.id = ANY (ids)
        ORDER BY i.id
        RETURNING workflow_id
    )
    SELECT array_agg(made.workflow_id) INTO waiting FROM made;
    IF waiting IS NOT NULL THEN
        -- Nearly always all are known: then nothing is written, and no two sessions meet.
        INSERT INTO outbox.signal_names (pipeline, name)
        SELECT DISTINCT w.pipeline, v.signal
        FROM outbox.waits AS v JOIN outbox.workflow_states AS w ON w.id = v.workflow_id
        WHERE v.workflow_id = ANY (waiting)
          AND NOT EXISTS (SELECT FROM outbox.signal_names AS n WHERE n.pipeline = w.pipeline AND n.name = v.signal)
          AND (SELECT count(*) FROM outbox.signal_names AS n WHERE n.pipeline = w.pipeline) < 100
        ORDER BY 1, 2
        ON CONFLICT DO NOTHING;
        PERFORM outbox.signals_take(waiting);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.signals_begin(jsonb, uuid[]) IS 'Internal: begins the waits for signals that handlers have returned.';
REVOKE EXECUTE ON FUNCTION outbox.signals_take(uuid[]), outbox.signals_begin(jsonb, uuid[]) FROM PUBLIC;

-- A signal locks its workflow, so that it and the beginning of the wait for it see each other, whichever comes first.
CREATE OR REPLACE FUNCTION outbox.signal_receive() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT w.id INTO NEW.workflow_id FROM outbox.workflow_states AS w
    WHERE w.pipeline = NEW.pipeline AND w.entity_id = NEW.entity_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'signal "%": there is no workflow of entity "%" in pipeline "%"', NEW.name, NEW.entity_id, NEW.pipeline
            USING ERRCODE = 'OB011',
                  DETAIL = jsonb_build_object('pipeline', NEW.pipeline, 'entity_id', NEW.entity_id)::text,
                  HINT = 'A signal is for a workflow that has been submitted.';
    END IF;
    IF EXISTS (SELECT FROM outbox.signals AS s
               WHERE s.workflow_id = NEW.workflow_id AND s.name = NEW.name AND s.signal_id = NEW.signal_id) THEN
        RETURN NULL;
    END IF;
    NEW.sent_by := outbox.actor();
    NEW.login := session_user;
    NEW.sent_at := clock_timestamp();
    NEW.taken_at := NULL;
    -- A commit of this workflow that is under way at a higher isolation level would not see this signal: it must fail, and
    -- be tried again.
    UPDATE outbox.workflow_states AS w SET updated_at = w.updated_at WHERE w.id = NEW.workflow_id;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION outbox.signal_receive() IS 'Internal: finds and locks the workflow of a signal, and ignores a repeated one.';

CREATE OR REPLACE FUNCTION outbox.signal_take() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text;
BEGIN
    IF NOT EXISTS (SELECT FROM outbox.signal_names AS n WHERE n.pipeline = NEW.pipeline AND n.name = NEW.name) THEN
        problem := outbox.signal_unknown(NEW.pipeline, NEW.name);
    END IF;
    IF problem IS NOT NULL THEN
        RAISE NOTICE 'the signal is kept: %', problem;
    END IF;
    PERFORM outbox.signals_take(ARRAY[NEW.workflow_id]);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.signal_take() IS 'Internal: moves the workflow that waits for this signal.';
