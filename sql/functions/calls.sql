-- What programs in any language call in transactions of their own, beside outbox.decide, outbox.cancel and outbox.retry. These
-- functions run with the rights of who calls them: each does what its caller may do by plain SQL, and nothing else.

-- The name and the reason hold until the end of the transaction, so a call puts back what they were. Null: as before.
CREATE OR REPLACE FUNCTION outbox.act_as(by text, reason text) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before text[] := ARRAY[coalesce(current_setting('outbox.actor', true), ''),
                           coalesce(current_setting('outbox.reason', true), '')];
BEGIN
    IF by IS NOT NULL THEN
        PERFORM set_config('outbox.actor', by, true);
    END IF;
    IF reason IS NOT NULL THEN
        PERFORM set_config('outbox.reason', reason, true);
    END IF;
    RETURN before;
END
$$;
COMMENT ON FUNCTION outbox.act_as(text, text) IS
    'Names who acts, and why, for the rest of the transaction (null: as before). Returns the name and the reason before.';

CREATE OR REPLACE FUNCTION outbox.submit(
    pipeline text, entity_id text, data jsonb DEFAULT '{}', by text DEFAULT NULL, reason text DEFAULT NULL,
    OUT id uuid, OUT status text, OUT created boolean
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before text[] := outbox.act_as(submit.by, submit.reason);
BEGIN
    created := false;
    -- Several tries: a workflow that is there may be deleted before it is read.
    FOR try IN 1 .. 3 LOOP
        INSERT INTO outbox.workflow_states AS w (pipeline, entity_id, metadata)
        VALUES (submit.pipeline, submit.entity_id, coalesce(submit.data, '{}'))
        ON CONFLICT ON CONSTRAINT workflow_states_entity_key DO NOTHING
        RETURNING w.id, w.current_status INTO submit.id, submit.status;
        created := FOUND;
        IF NOT created THEN
            SELECT w.id, w.current_status INTO submit.id, submit.status FROM outbox.workflow_states AS w
            WHERE w.pipeline = submit.pipeline AND w.entity_id = submit.entity_id;
        END IF;
        EXIT WHEN FOUND;
    END LOOP;
    PERFORM outbox.act_as(before[1], before[2]);
END
$$;
COMMENT ON FUNCTION outbox.submit(text, text, jsonb, text, text) IS
    'Starts a workflow, and returns its id and status, and whether it is new. An entity that has one already keeps it as it is.';

-- What the client in Python calls. A function's statements are planned once a session, also for drivers that prepare nothing.
CREATE OR REPLACE FUNCTION outbox.submit_of_code(
    pipeline text, entity_id text, metadata text, OUT id uuid, OUT status text, OUT created boolean
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    created := false;
    PERFORM set_config('outbox.of_code', statement_timestamp()::text, true);
    -- Several tries: a workflow that is there may be deleted before it is read.
    FOR try IN 1 .. 3 LOOP
        INSERT INTO outbox.workflow_states AS w (pipeline, entity_id, current_status, metadata)
        SELECT p.pipeline, submit_of_code.entity_id, p.initial_status,
               outbox.data_of_code(submit_of_code.metadata::jsonb, p.plain)
        FROM outbox.pipelines AS p WHERE p.pipeline = submit_of_code.pipeline
        ON CONFLICT ON CONSTRAINT workflow_states_entity_key DO NOTHING
        RETURNING w.id, w.current_status INTO submit_of_code.id, submit_of_code.status;
        created := FOUND;
        IF NOT created THEN
            SELECT w.id, w.current_status INTO submit_of_code.id, submit_of_code.status FROM outbox.workflow_states AS w
            WHERE w.pipeline = submit_of_code.pipeline AND w.entity_id = submit_of_code.entity_id;
        END IF;
        EXIT WHEN FOUND;
    END LOOP;
END
$$;
COMMENT ON FUNCTION outbox.submit_of_code(text, text, text) IS
    'Internal: starts a workflow with data that the pipeline''s own code has made. No id: the pipeline is not deployed.';

CREATE OR REPLACE FUNCTION outbox.signal(
    pipeline text, entity_id text, name text, payload jsonb DEFAULT NULL, id text DEFAULT NULL, by text DEFAULT NULL,
    OUT status text, OUT created boolean, OUT taken boolean
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before text[] := outbox.act_as(signal.by, NULL);
    number bigint;
BEGIN
    INSERT INTO outbox.signals AS s (pipeline, entity_id, name, payload, signal_id)
    VALUES (signal.pipeline, signal.entity_id, signal.name, signal.payload, signal.id)
    RETURNING s.id INTO number;
    created := FOUND;
    SELECT w.current_status, s.taken_at IS NOT NULL INTO signal.status, signal.taken
    FROM outbox.workflow_states AS w
    JOIN outbox.signals AS s ON s.workflow_id = w.id AND s.name = signal.name
        AND (s.id = number OR number IS NULL AND s.signal_id = signal.id)
    WHERE w.pipeline = signal.pipeline AND w.entity_id = signal.entity_id;
    PERFORM outbox.act_as(before[1], before[2]);
END
$$;
COMMENT ON FUNCTION outbox.signal(text, text, text, jsonb, text, text) IS
    'Sends a signal to a workflow. Returns the status that the workflow then has, whether the signal is new (a second one with '
    'the same id has no effect), and whether a wait has taken it.';

CREATE OR REPLACE FUNCTION outbox.move(
    pipeline text, entity_id text, to_status text, by text DEFAULT NULL, reason text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before   text[];
    workflow uuid;
    status   text;
BEGIN
    SELECT w.id, w.current_status INTO workflow, status FROM outbox.workflow_states AS w
    WHERE w.pipeline = move.pipeline AND w.entity_id = move.entity_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no workflow of entity "%" in pipeline "%"', move.entity_id, move.pipeline
            USING ERRCODE = 'OB011', DETAIL = jsonb_build_object('pipeline', move.pipeline, 'entity_id', move.entity_id)::text;
    ELSIF status = move.to_status THEN
        PERFORM outbox.commit_waits();
    ELSE
        before := outbox.act_as(move.by, move.reason);
        UPDATE outbox.workflow_states AS w SET current_status = move.to_status WHERE w.id = workflow
        RETURNING w.current_status INTO status;
        PERFORM outbox.act_as(before[1], before[2]);
    END IF;
    RETURN status;
END
$$;
COMMENT ON FUNCTION outbox.move(text, text, text, text, text) IS
    'Changes the status of a workflow to one that the pipeline allows from there, and returns the status that it then has.';

CREATE OR REPLACE FUNCTION outbox.pause(pipeline text, stage text, by text DEFAULT NULL, reason text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO outbox.pauses (pipeline, stage, paused_by, reason)
    VALUES (pause.pipeline, pause.stage, coalesce(pause.by, outbox.actor()),
            coalesce(pause.reason, nullif(current_setting('outbox.reason', true), '')))
    ON CONFLICT ON CONSTRAINT pauses_pkey DO NOTHING;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION outbox.pause(text, text, text, text) IS
    'Has no worker claim for a stage; running handlers go on. Returns false if it was paused already.';

CREATE OR REPLACE FUNCTION outbox.resume(pipeline text, stage text, by text DEFAULT NULL, reason text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before  text[] := outbox.act_as(resume.by, resume.reason);
    resumed boolean;
BEGIN
    DELETE FROM outbox.pauses AS p WHERE p.pipeline = resume.pipeline AND p.stage = resume.stage;
    resumed := FOUND;
    PERFORM outbox.act_as(before[1], before[2]);
    RETURN resumed;
END
$$;
COMMENT ON FUNCTION outbox.resume(text, text, text, text) IS
    'Has workers claim for a paused stage again. Returns false if it was not paused.';

-- As the owner: who pauses a stage can't write what is kept of it.
CREATE OR REPLACE FUNCTION outbox.pause_kept() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO outbox.actions (action, pipeline, stage, actor, reason)
        VALUES ('pause', NEW.pipeline, NEW.stage, NEW.paused_by, NEW.reason);
    ELSE
        INSERT INTO outbox.actions (action, pipeline, stage, reason)
        VALUES ('resume', OLD.pipeline, OLD.stage, nullif(current_setting('outbox.reason', true), ''));
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.pause_kept() IS 'Internal: keeps who has paused or resumed a stage.';
