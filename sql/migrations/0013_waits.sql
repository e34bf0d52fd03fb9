-- What a workflow waits for besides a worker: a time, a person, a signal. A wait is a status in which no stage works;
-- what ends it changes the status. Its timeout is the workflow's one live job, due later and of no stage.

-- `deadline`: when the workflow moves to `on_deadline`, unless it has moved before, whatever its stage does meanwhile. A
-- job without a stage is nothing but that. It is in no index that claims or the promotion of due jobs use.
ALTER TABLE outbox.jobs ALTER COLUMN stage DROP NOT NULL;
ALTER TABLE outbox.jobs ADD COLUMN deadline timestamptz, ADD COLUMN on_deadline text COLLATE "C";
ALTER TABLE outbox.jobs ADD CONSTRAINT jobs_deadline_leads_somewhere CHECK ((deadline IS NULL) = (on_deadline IS NULL)),
    ADD CONSTRAINT jobs_have_a_stage_or_a_deadline CHECK (stage IS NOT NULL OR deadline IS NOT NULL);
CREATE INDEX jobs_with_deadline ON outbox.jobs (deadline) WHERE deadline IS NOT NULL;
DROP INDEX outbox.jobs_scheduled;
CREATE INDEX jobs_scheduled ON outbox.jobs (run_at) INCLUDE (pipeline, stage, status)
    WHERE owner IS NULL AND NOT due AND stage IS NOT NULL;

-- The deadline that a pipeline gives to all who come into a status.
ALTER TABLE outbox.routes ADD COLUMN deadline interval, ADD COLUMN on_deadline text COLLATE "C",
    ADD CONSTRAINT routes_deadline_leads_somewhere CHECK ((deadline IS NULL) = (on_deadline IS NULL));

-- A question to a person, with its answer. Open until `ended_at`; then `ended` says how: decided, deadline, or withdrawn
-- (the status was changed to something that was no option). `shown` is the hash of the data that the question is about.
CREATE TABLE outbox.approvals (
    id           uuid NOT NULL DEFAULT outbox.uuid7() CONSTRAINT approvals_pkey PRIMARY KEY,
    workflow_id  uuid NOT NULL,
    pipeline     text COLLATE "C" NOT NULL,
    entity_id    text COLLATE "C" NOT NULL,
    status       text COLLATE "C" NOT NULL,
    version      bigint NOT NULL,
    question     text NOT NULL,
    shown        text NOT NULL,
    options      jsonb NOT NULL,
    assignee     text,
    asked_at     timestamptz NOT NULL DEFAULT now(),
    deadline     timestamptz,
    remind_every interval,
    remind_at    timestamptz,
    reminders    integer NOT NULL DEFAULT 0,
    ended        text CONSTRAINT approvals_ended_how CHECK (ended IN ('decided', 'deadline', 'withdrawn')),
    decision     text,
    to_status    text COLLATE "C",
    decided_by   text,
    reason       text,
    edited       jsonb,
    ended_at     timestamptz,
    CONSTRAINT approvals_end_at_once CHECK ((ended IS NULL) = (ended_at IS NULL))
);
-- At most one is open; and all of a workflow, for its history.
CREATE UNIQUE INDEX approvals_open ON outbox.approvals (workflow_id) WHERE ended_at IS NULL;
CREATE INDEX approvals_by_workflow ON outbox.approvals (workflow_id, version);
CREATE INDEX approvals_to_remind ON outbox.approvals (remind_at) WHERE ended_at IS NULL AND remind_at IS NOT NULL;

-- A workflow that waits for a signal, and where it goes then. `field`: where in its data the signal's payload is kept.
CREATE TABLE outbox.waits (
    workflow_id uuid NOT NULL CONSTRAINT waits_pkey PRIMARY KEY,
    signal      text COLLATE "C" NOT NULL,
    to_status   text COLLATE "C" NOT NULL,
    field       text,
    since       timestamptz NOT NULL DEFAULT now()
);

-- What other systems tell a workflow: INSERT (pipeline, entity_id, name, payload). It is kept until the workflow waits for
-- it. Of two with the same `signal_id` the second one is nothing.
CREATE TABLE outbox.signals (
    id          bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT signals_pkey PRIMARY KEY,
    workflow_id uuid NOT NULL,
    pipeline    text COLLATE "C" NOT NULL,
    entity_id   text COLLATE "C" NOT NULL,
    name        text COLLATE "C" NOT NULL,
    payload     jsonb,
    signal_id   text COLLATE "C",
    sent_by     text NOT NULL,
    sent_at     timestamptz NOT NULL DEFAULT now(),
    taken_at    timestamptz,
    CONSTRAINT signals_are_one_by_id UNIQUE (workflow_id, name, signal_id)
);
CREATE INDEX signals_to_take ON outbox.signals (workflow_id, name, id) WHERE taken_at IS NULL;

-- Gives workflows that have just come into a status its deadline: beside the job of its stage, or alone.
CREATE FUNCTION outbox.deadlines_set(ids uuid[]) RETURNS void
LANGUAGE sql
BEGIN ATOMIC
    INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version, run_at, due, deadline, on_deadline)
    SELECT w.id, w.pipeline, NULL, w.current_status, w.version, now() + r.deadline, false, now() + r.deadline, r.on_deadline
    FROM outbox.workflow_states AS w
    JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status AND r.on_deadline IS NOT NULL
    WHERE w.id = ANY (ids)
    ORDER BY w.id
    ON CONFLICT (workflow_id) DO UPDATE SET deadline = excluded.deadline, on_deadline = excluded.on_deadline;
END;

-- Moves those of these workflows that wait for a signal which is there; each takes one, the oldest.
CREATE FUNCTION outbox.signals_take(ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    taken  record;
    before text := coalesce(current_setting('outbox.reason', true), '');
BEGIN
    -- One at a time: each is told in the history by its own name.
    FOR taken IN
        SELECT DISTINCT ON (w.workflow_id) w.workflow_id, w.to_status, w.field, s.id, s.name, s.payload
        FROM outbox.waits AS w
        JOIN outbox.signals AS s ON s.workflow_id = w.workflow_id AND s.name = w.signal AND s.taken_at IS NULL
        WHERE w.workflow_id = ANY (ids)
        ORDER BY w.workflow_id, s.id
    LOOP
        UPDATE outbox.signals AS s SET taken_at = now() WHERE s.id = taken.id;
        PERFORM set_config('outbox.reason', 'signal ' || taken.name, true);
        UPDATE outbox.workflow_states AS w
        SET current_status = taken.to_status,
            metadata = CASE WHEN taken.field IS NULL THEN w.metadata
                            ELSE w.metadata || jsonb_build_object(taken.field, taken.payload) END
        WHERE w.id = taken.workflow_id;
        PERFORM set_config('outbox.reason', before, true);
    END LOOP;
END
$$;

-- Ends what workflows have waited for that have moved on: position n of `tos` is where workflow n has gone. Who has
-- changed the status has answered the question, by whichever way.
CREATE FUNCTION outbox.waits_end(ids uuid[], tos text[], actor text, reason text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    said text := nullif(current_setting('outbox.decision', true), '');
BEGIN
    DELETE FROM outbox.waits AS w WHERE w.workflow_id = ANY (ids);
    UPDATE outbox.approvals AS a
    SET ended = CASE WHEN said = '(deadline)' THEN 'deadline' WHEN a.options ? d.decision THEN 'decided' ELSE 'withdrawn' END,
        decision = CASE WHEN a.options ? d.decision THEN d.decision END,
        to_status = d.to_status, decided_by = actor, reason = waits_end.reason, ended_at = now()
    FROM (
        SELECT o.workflow_id, c.to_status, coalesce(said, (
            SELECT min(e.key) FROM jsonb_each_text(o.options) AS e (key, value) WHERE e.value = c.to_status)) AS decision
        FROM unnest(ids, tos) AS c (id, to_status)
        JOIN outbox.approvals AS o ON o.workflow_id = c.id AND o.ended_at IS NULL
    ) AS d
    WHERE a.workflow_id = d.workflow_id AND a.ended_at IS NULL;
END
$$;

-- The hash by which a decision says what it was made on.
CREATE FUNCTION outbox.shown(metadata jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN encode(sha256(convert_to(metadata::text, 'UTF8')), 'hex');

-- Answers the open question of a workflow, and returns the status that it has then. Exactly one answer wins; whoever comes
-- later is told who has decided, and when. The same answer by the same person is no error: a network may repeat it.
-- `shown`: the hash of the data that the answer is about, if it isn't what was asked about. `edit` becomes the data.
CREATE FUNCTION outbox.decide(
    pipeline text, entity_id text, decision text, decided_by text DEFAULT NULL, reason text DEFAULT NULL,
    edit jsonb DEFAULT NULL, shown text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    workflow outbox.workflow_states;
    asked    outbox.approvals;
    target   text;
    actor    text := coalesce(decide.decided_by, outbox.actor());
    before   text[] := ARRAY[current_setting('outbox.actor', true), current_setting('outbox.reason', true)];
BEGIN
    -- The workflow first, as everywhere: then nobody else's decision, and no deadline, is under way.
    SELECT * INTO workflow FROM outbox.workflow_states AS w
    WHERE w.pipeline = decide.pipeline AND w.entity_id = decide.entity_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no workflow of entity "%" in pipeline "%"', decide.entity_id, decide.pipeline
            USING ERRCODE = 'OB011';
    END IF;
    SELECT * INTO asked FROM outbox.approvals AS a WHERE a.workflow_id = workflow.id ORDER BY a.version DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": nothing is asked, it is in %', workflow.pipeline, workflow.entity_id,
            workflow.current_status USING ERRCODE = 'OB012', HINT = 'outbox approvals lists what is.';
    ELSIF asked.ended = 'decided' AND (asked.decision, asked.decided_by) = (decide.decision, actor) THEN
        RETURN asked.to_status;
    ELSIF asked.ended IS NOT NULL THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": too late, % by % at %', workflow.pipeline, workflow.entity_id,
            CASE asked.ended WHEN 'decided' THEN 'it was decided: ' || asked.decision
                             WHEN 'deadline' THEN 'the deadline has passed: moved to ' || asked.to_status
                             ELSE 'the question was withdrawn: moved to ' || asked.to_status END,
            asked.decided_by, to_char(asked.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')
            USING ERRCODE = 'OB013';
    END IF;
    target := asked.options ->> decide.decision;
    IF target IS NULL THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": "%" is no option of "%"', workflow.pipeline, workflow.entity_id,
            decide.decision, asked.question
            USING ERRCODE = 'OB014',
                  HINT = 'Its options: ' || (SELECT string_agg(o.key, ', ' ORDER BY o.key) FROM jsonb_object_keys(asked.options) AS o (key));
    ELSIF outbox.shown(workflow.metadata) <> coalesce(decide.shown, asked.shown) THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": the data has changed since it was shown', workflow.pipeline,
            workflow.entity_id
            USING ERRCODE = 'OB015', HINT = 'Look at it again and decide with shown = ' || outbox.shown(workflow.metadata);
    END IF;
    PERFORM set_config('outbox.actor', actor, true), set_config('outbox.reason', coalesce(decide.reason, ''), true),
            set_config('outbox.decision', decide.decision, true);
    UPDATE outbox.workflow_states AS w
    SET current_status = target, metadata = coalesce(decide.edit, w.metadata)
    WHERE w.id = workflow.id;
    UPDATE outbox.approvals AS a SET edited = decide.edit WHERE a.id = asked.id AND decide.edit IS NOT NULL;
    -- What else the caller's transaction changes is not by who has decided.
    PERFORM set_config('outbox.decision', '', true), set_config('outbox.actor', coalesce(before[1], ''), true),
            set_config('outbox.reason', coalesce(before[2], ''), true);
    RETURN target;
END
$$;

-- A signal locks its workflow, so that it and the beginning of the wait for it see each other, whichever is first.
CREATE FUNCTION outbox.signal_receive() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT w.id INTO NEW.workflow_id FROM outbox.workflow_states AS w
    WHERE w.pipeline = NEW.pipeline AND w.entity_id = NEW.entity_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'signal "%": there is no workflow of entity "%" in pipeline "%"', NEW.name, NEW.entity_id, NEW.pipeline
            USING ERRCODE = 'OB011', HINT = 'A signal is for a workflow that has been submitted.';
    END IF;
    IF EXISTS (SELECT FROM outbox.signals AS s
               WHERE s.workflow_id = NEW.workflow_id AND s.name = NEW.name AND s.signal_id = NEW.signal_id) THEN
        RETURN NULL;
    END IF;
    NEW.sent_by := outbox.actor();
    NEW.sent_at := now();
    NEW.taken_at := NULL;
    -- A commit of this workflow that is under way at a higher isolation level would not see this signal: it must fail, and
    -- be tried again.
    UPDATE outbox.workflow_states AS w SET updated_at = w.updated_at WHERE w.id = NEW.workflow_id;
    RETURN NEW;
END
$$;
CREATE TRIGGER signal_receive BEFORE INSERT ON outbox.signals FOR EACH ROW EXECUTE FUNCTION outbox.signal_receive();

CREATE FUNCTION outbox.signal_take() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM outbox.signals_take(ARRAY[NEW.workflow_id]);
    RETURN NULL;
END
$$;
CREATE TRIGGER signal_take AFTER INSERT ON outbox.signals FOR EACH ROW EXECUTE FUNCTION outbox.signal_take();

-- These run as the owner, within the triggers: nobody else calls them.
REVOKE EXECUTE ON FUNCTION outbox.deadlines_set(uuid[]), outbox.signals_take(uuid[]),
    outbox.waits_end(uuid[], text[], text, text), outbox.signal_receive(), outbox.signal_take(),
    outbox.decide(text, text, text, text, text, jsonb, text) FROM PUBLIC;
