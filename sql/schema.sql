-- GENERATED from sql/migrations by `make schema`: what they amount to, for people to read. A test compares it.


CREATE SCHEMA outbox;

CREATE FUNCTION outbox.actor() RETURNS text
    LANGUAGE sql STABLE
    RETURN COALESCE(NULLIF(current_setting('outbox.actor'::text, true), ''::text), NULLIF(current_setting('role'::text, true), 'none'::text), (SESSION_USER)::text);

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

CREATE FUNCTION outbox.uuid7() RETURNS uuid
    LANGUAGE sql PARALLEL RESTRICTED
    RETURN ((OVERLAY(lpad(to_hex(((EXTRACT(epoch FROM clock_timestamp()) * (4096000)::numeric))::bigint), 15, '0'::text) PLACING '7'::text FROM 13 FOR 0) || to_hex(((hashint8extended(((random() * ('9007199254740992'::bigint)::double precision))::bigint, (((random() * ('9007199254740992'::bigint)::double precision))::bigint # (pg_backend_pid())::bigint)) & '4611686018427387903'::bigint) | '-9223372036854775808'::bigint))))::uuid;

CREATE TABLE outbox.jobs (
    workflow_id uuid NOT NULL,
    id bigint NOT NULL,
    pipeline text NOT NULL COLLATE pg_catalog."C",
    stage text COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    run_at timestamp with time zone DEFAULT now() NOT NULL,
    claimed_at timestamp with time zone,
    owner integer,
    attempt integer DEFAULT 0 NOT NULL,
    due boolean DEFAULT true NOT NULL,
    careful boolean DEFAULT false NOT NULL,
    error text,
    deadline timestamp with time zone,
    on_deadline text COLLATE pg_catalog."C",
    progress text,
    partition text COLLATE pg_catalog."C",
    priority integer,
    CONSTRAINT jobs_deadline_leads_somewhere CHECK (((deadline IS NULL) = (on_deadline IS NULL))),
    CONSTRAINT jobs_have_a_stage_or_a_deadline CHECK (((stage IS NOT NULL) OR (deadline IS NOT NULL)))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_analyze_scale_factor='0.2', autovacuum_vacuum_cost_delay='0');

CREATE TABLE outbox.routes (
    pipeline text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    stage text COLLATE pg_catalog."C",
    running boolean DEFAULT false NOT NULL,
    final boolean DEFAULT false NOT NULL,
    deadline interval,
    on_deadline text COLLATE pg_catalog."C",
    reactions text[],
    partition text[],
    priority text[],
    CONSTRAINT routes_deadline_leads_somewhere CHECK (((deadline IS NULL) = (on_deadline IS NULL)))
);

CREATE TABLE outbox.workflow_states (
    id uuid DEFAULT outbox.uuid7() NOT NULL,
    pipeline text NOT NULL COLLATE pg_catalog."C",
    entity_id text NOT NULL COLLATE pg_catalog."C",
    current_status text NOT NULL COLLATE pg_catalog."C",
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    version bigint DEFAULT 1 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT workflow_states_entity_id_length CHECK (((char_length(entity_id) >= 1) AND (char_length(entity_id) <= 512)))
)
WITH (fillfactor='80', autovacuum_vacuum_scale_factor='0.05');

CREATE FUNCTION outbox.deadlines_set(ids uuid[]) RETURNS void
    LANGUAGE sql
    BEGIN ATOMIC
 INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version, run_at, due, deadline, on_deadline)  SELECT w.id,
             w.pipeline,
             NULL::unknown,
             w.current_status,
             w.version,
             (now() + r.deadline),
             false,
             (now() + r.deadline),
             r.on_deadline
            FROM (outbox.workflow_states w
              JOIN outbox.routes r ON (((r.pipeline = w.pipeline) AND (r.status = w.current_status) AND (r.on_deadline IS NOT NULL))))
           WHERE (w.id = ANY (deadlines_set.ids))
           ORDER BY w.id ON CONFLICT(workflow_id) DO UPDATE SET deadline = excluded.deadline, on_deadline = excluded.on_deadline;
END;

CREATE FUNCTION outbox.decide(pipeline text, entity_id text, decision text, decided_by text DEFAULT NULL::text, reason text DEFAULT NULL::text, edit jsonb DEFAULT NULL::jsonb, shown text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION outbox.inbox_forget(days double precision) RETURNS TABLE(child text, emptied boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '100ms'
    AS $$
DECLARE
    first_day bigint := floor(extract(epoch FROM clock_timestamp()) / 86400 - days);
    old_only  text := 'SELECT coalesce((SELECT outbox.uuid7_time(i.message_id) < outbox.inbox_oldest() '
                      'FROM outbox.%I AS i ORDER BY i.message_id DESC LIMIT 1), false)';
    is_old    boolean;
BEGIN
    IF days IS NULL OR NOT days BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION 'the inbox remembers 1 to 200 days, not %', days USING ERRCODE = '22023';
    END IF;
    -- Two at once could set the floor back.
    IF NOT pg_try_advisory_xact_lock(hashtext('outbox.inbox_forget')) THEN
        RETURN;
    END IF;
    PERFORM setval('outbox.inbox_floor', first_day) FROM outbox.inbox_floor AS s WHERE s.last_value < first_day;
    DELETE FROM outbox.delivery_attempts AS a WHERE a.ctid = ANY (ARRAY(
        SELECT o.ctid FROM outbox.delivery_attempts AS o WHERE o.at < outbox.inbox_oldest() FOR UPDATE SKIP LOCKED));
    FOR child IN
        SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'outbox.inbox'::regclass ORDER BY c.relname
    LOOP
        EXECUTE format(old_only, child) INTO is_old;
        IF is_old THEN
            BEGIN
                EXECUTE format('LOCK TABLE outbox.%I IN ACCESS EXCLUSIVE MODE', child);
                EXECUTE format(old_only, child) INTO emptied;
                IF emptied THEN
                    EXECUTE format('TRUNCATE TABLE outbox.%I', child);
                    RETURN NEXT;
                END IF;
            EXCEPTION WHEN lock_not_available THEN
                emptied := false;
                RETURN NEXT;
            END;
        END IF;
    END LOOP;
END
$$;

CREATE SEQUENCE outbox.inbox_floor
    START WITH 0
    INCREMENT BY 1
    MINVALUE 0
    NO MAXVALUE
    CACHE 1;

CREATE FUNCTION outbox.inbox_oldest() RETURNS timestamp with time zone
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN (SELECT to_timestamp((((s.last_value)::numeric * 86400.0))::double precision) AS to_timestamp FROM outbox.inbox_floor s);

CREATE FUNCTION outbox.inbox_refuse() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    sent   timestamptz := outbox.uuid7_time(NEW.message_id);
    oldest timestamptz := outbox.inbox_oldest();
BEGIN
    IF NEW.message_id::text !~ '^.{14}7.{4}[89ab]' THEN
        RAISE EXCEPTION 'message_id % is no UUIDv7', NEW.message_id
            USING ERRCODE = 'OB006', HINT = 'Take the message''s own id: the header cloudEvents_id.';
    ELSIF sent < oldest THEN
        RAISE EXCEPTION 'message_id % was made at %, and the inbox remembers nothing before %', NEW.message_id, sent, oldest
            USING ERRCODE = 'OB007', HINT = 'Nobody can say whether it is a duplicate: a person must decide.';
    ELSIF sent > clock_timestamp() + interval '1 day' THEN
        RAISE EXCEPTION 'message_id % was made at %, which is more than a day ahead', NEW.message_id, sent
            USING ERRCODE = 'OB008', HINT = 'The clock of its sender is wrong, or this server''s.';
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION outbox.jobs_claim_limited(worker integer, of_pipeline text, of_stage text, most integer, one_careful boolean, lead double precision, ahead double precision, slack double precision) RETURNS TABLE(pipeline text, stage text, id bigint, workflow_id text, entered bigint, attempt integer, careful boolean, entity_id text, status text, version bigint, metadata text, starts_at double precision, asked_at double precision, answered_at double precision)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
DECLARE
    came    timestamptz := clock_timestamp();
    l       outbox.limits;
    begun   timestamptz;               -- the earliest moment that an attempt can begin
    first   timestamptz;               -- and may, for the stage
    gap     float8;                    -- seconds between two, of the stage
    narrow  float8;                    -- and of a partition
    room    integer := most;
    taken   uuid[] := '{}';
    keys    text[] := '{}';            -- the partitions in turn,
    rooms   integer[] := '{}';         -- how many jobs each may have,
    laters  jsonb := '{}';             -- in how many seconds the next begins, by partition,
    far     text[];                    -- and where that is further away than it can be
    since   text;                      -- the partitions from this one on are still to be looked at,
    around  boolean := false;          -- up to the one that was served last, if it has been around
    step    integer;                   -- how many it looks at together,
    looked  integer := 0;              -- and has so far
    last    text;
    share   integer;
    suspect uuid;
    tight   boolean := false;          -- whether it is `concurrency` that leaves no more room
    held    float8;                    -- seconds for which the stage is held up,
    waits   float8;                    -- and the next of its partitions
BEGIN
    SELECT s.* INTO l FROM outbox.limits AS s WHERE s.pipeline = of_pipeline AND s.stage = of_stage FOR NO KEY UPDATE;
    IF NOT FOUND OR EXISTS (SELECT FROM outbox.pauses AS p WHERE p.pipeline = of_pipeline AND p.stage = of_stage)
        OR NOT EXISTS (SELECT FROM outbox.workers AS w WHERE w.id = worker)
        OR NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.pipeline = of_pipeline AND j.stage = of_stage
                       AND CASE WHEN j.owner IS NULL AND j.due THEN j.partition IS NOT NULL END) THEN
        RETURN;
    END IF;
    begun := clock_timestamp() + make_interval(secs => lead);
    narrow := 1 / l.partition_rate + slack / greatest(l.partition_rate, 1);

    IF l.concurrency IS NOT NULL THEN
        SELECT least(room, l.concurrency - count(*)) INTO room
        FROM (SELECT FROM outbox.jobs AS j WHERE j.pipeline = of_pipeline AND j.stage = of_stage
              AND j.owner IS NOT NULL AND j.partition IS NOT NULL LIMIT l.concurrency) AS j;
        tight := room < most;
    END IF;
    IF l.rate IS NOT NULL THEN
        gap := 1 / l.rate + slack / greatest(l.rate, 1);
        -- A clock that was set back, or a rate that was raised, holds up one attempt and no more.
        first := greatest(begun, least(l.next_at, begun + make_interval(secs => ahead + gap)));
        room := least(room, floor((ahead - extract(epoch FROM first - begun)) / gap) + 1);
    END IF;

    since := l.served || E'\x01';  -- the next possible text
    WHILE room > 0 LOOP
        step := 1;
        IF l.partitioned THEN
            -- From one partition to the next by the index. Of many, each has up to eight jobs in its turn: a look costs more than
            -- a job.
            step := greatest(ceil(room::float8 / CASE WHEN gap + narrow > 0 THEN 1 ELSE greatest(1, least(8, most / 25)) END), 25);
            WITH RECURSIVE walk (key, n) AS (
                (SELECT j.partition, 1 FROM outbox.jobs AS j
                 WHERE j.pipeline = of_pipeline AND j.stage = of_stage AND j.partition >= since
                   AND CASE WHEN j.owner IS NULL AND j.due THEN j.partition IS NOT NULL END
                 ORDER BY j.partition LIMIT 1)
                UNION ALL
                SELECT next.partition, walk.n + 1 FROM walk CROSS JOIN LATERAL (
                    SELECT j.partition FROM outbox.jobs AS j
                    WHERE j.pipeline = of_pipeline AND j.stage = of_stage AND j.partition > walk.key
                      AND CASE WHEN j.owner IS NULL AND j.due THEN j.partition IS NOT NULL END
                    ORDER BY j.partition LIMIT 1) AS next
                WHERE walk.n < step
            )
            SELECT coalesce(array_agg(walk.key ORDER BY walk.n), '{}') INTO keys
            FROM walk WHERE NOT around OR walk.key <= l.served;
            looked := looked + cardinality(keys);
            last := coalesce(keys[cardinality(keys)], last);
            since := last || E'\x01';
        ELSE
            keys := ARRAY[''];
        END IF;
        step := step - cardinality(keys);

        -- How many jobs each may have.
        IF narrow IS NULL AND l.partition_concurrency IS NULL THEN
            rooms := array_fill(room, ARRAY[cardinality(keys)]);
        ELSE
            SELECT coalesce(array_agg(k.key ORDER BY k.n) FILTER (WHERE k.size > 0), '{}'),
                   coalesce(array_agg(k.size ORDER BY k.n) FILTER (WHERE k.size > 0), '{}'),
                   laters || coalesce(jsonb_object_agg(k.key, k.later), '{}'),
                   least(waits, min(CASE WHEN k.later > 0 THEN greatest(k.later - ahead / 2, 0.005) ELSE 0.1 END)
                                    FILTER (WHERE k.size <= 0)),
                   array_agg(k.key) FILTER (WHERE k.later >= ahead + narrow)
            INTO keys, rooms, laters, waits, far
            FROM (SELECT k.key, k.n, r.later,
                         least(room, l.partition_concurrency - (
                                   SELECT count(*) FROM (
                                       SELECT FROM outbox.jobs AS j
                                       WHERE j.pipeline = of_pipeline AND j.stage = of_stage AND j.partition = k.key
                                         AND j.owner IS NOT NULL AND j.partition IS NOT NULL LIMIT l.partition_concurrency) AS j),
                               CASE WHEN narrow IS NULL THEN room
                                    WHEN gap IS NULL THEN floor((ahead - r.later) / narrow) + 1
                                    WHEN r.later > 0 THEN 0 ELSE 1 END)::integer AS size
                  FROM unnest(keys) WITH ORDINALITY AS k (key, n)
                  CROSS JOIN LATERAL (
                      SELECT greatest(0, least(ahead + narrow, coalesce(extract(epoch FROM (
                          SELECT r.next_at FROM outbox.partition_rates AS r
                          WHERE r.pipeline = of_pipeline AND r.stage = of_stage AND r.partition = k.key) - begun), 0)))::float8 AS later
                  ) AS r) AS k;
            UPDATE outbox.partition_rates AS r SET next_at = begun + make_interval(secs => ahead + narrow)
            WHERE far IS NOT NULL AND r.pipeline = of_pipeline AND r.stage = of_stage AND r.partition = ANY (far);
        END IF;
        IF cardinality(keys) > room THEN
            keys := keys[:room];
            last := keys[room];
        END IF;

        IF one_careful AND suspect IS NULL THEN
            SELECT j.workflow_id INTO suspect FROM outbox.jobs AS j
            WHERE j.pipeline = of_pipeline AND j.stage = of_stage AND j.careful AND j.owner IS NULL AND j.due
              AND j.partition = ANY (keys)
            ORDER BY j.id LIMIT 1;
        END IF;

        -- Each has its share; what one leaves, the others have.
        WHILE room > 0 AND cardinality(keys) > 0 LOOP
            share := (room + cardinality(keys) - 1) / cardinality(keys);
            WITH picked AS MATERIALIZED (
                SELECT j.workflow_id, k.n
                FROM unnest(keys, rooms) WITH ORDINALITY AS k (key, size, n)
                CROSS JOIN LATERAL (
                    SELECT j.workflow_id FROM outbox.jobs AS j
                    WHERE j.pipeline = of_pipeline AND j.stage = of_stage AND j.partition = k.key
                      AND CASE WHEN j.owner IS NULL AND j.due THEN j.partition IS NOT NULL END
                      AND (NOT j.careful OR j.workflow_id = suspect)
                    ORDER BY j.priority DESC, j.id
                    LIMIT least(share, k.size)
                    FOR NO KEY UPDATE SKIP LOCKED
                ) AS j
                LIMIT room
            ), claimed AS (
                UPDATE outbox.jobs AS j SET owner = worker, attempt = j.attempt + 1, claimed_at = now()
                WHERE j.workflow_id = ANY (ARRAY(SELECT p.workflow_id FROM picked AS p))
            )
            SELECT taken || coalesce((SELECT array_agg(p.workflow_id) FROM picked AS p), '{}'),
                   room - (SELECT count(*) FROM picked),
                   coalesce(array_agg(k.key ORDER BY k.n) FILTER (WHERE p.n = share AND k.size > share), '{}'),
                   coalesce(array_agg(k.size - share ORDER BY k.n) FILTER (WHERE p.n = share AND k.size > share), '{}')
            INTO taken, room, keys, rooms
            FROM unnest(keys, rooms) WITH ORDINALITY AS k (key, size, n)
            LEFT JOIN (SELECT p.n AS key, count(*) AS n FROM picked AS p GROUP BY p.n) AS p ON p.key = k.n;
        END LOOP;

        -- On to the next ones, and around, once.
        IF step > 0 THEN
            EXIT WHEN around;
            around := true;
            since := '';
        ELSIF NOT l.partitioned THEN
            EXIT;
        ELSIF looked >= 4 * most + 100 THEN
            waits := 0;
            EXIT;
        END IF;
    END LOOP;

    IF cardinality(taken) > 0 THEN
        -- What it took to come here is not to be made up for.
        begun := greatest(begun, clock_timestamp() + make_interval(secs => lead));
        first := greatest(first, begun);
        RETURN QUERY
        WITH job AS MATERIALIZED (
            SELECT j.id, j.workflow_id, j.version, j.attempt, j.careful, j.partition, j.priority,
                   row_number() OVER (PARTITION BY j.partition ORDER BY j.priority DESC, j.id) - 1 AS nth
            FROM outbox.jobs AS j WHERE j.workflow_id = ANY (taken)
        ), begins AS MATERIALIZED (
            SELECT job.*, CASE WHEN gap IS NOT NULL
                THEN first + make_interval(secs => gap * (row_number() OVER (ORDER BY job.nth, job.priority DESC, job.id) - 1))
                WHEN narrow IS NOT NULL
                THEN begun + make_interval(secs => (laters -> job.partition)::float8 + narrow * job.nth) END AS at
            FROM job
        ), noted AS (
            INSERT INTO outbox.partition_rates AS r (pipeline, stage, partition, next_at)
            SELECT of_pipeline, of_stage, b.partition, max(b.at) + make_interval(secs => narrow)
            FROM begins AS b WHERE narrow IS NOT NULL GROUP BY b.partition
            ON CONFLICT ON CONSTRAINT partition_rates_pkey DO UPDATE SET next_at = excluded.next_at
        )
        SELECT of_pipeline, of_stage, b.id, b.workflow_id::text, b.version, b.attempt, b.careful,
               w.entity_id, w.current_status, w.version, w.metadata::text,
               CASE WHEN coalesce(gap, narrow) IS NOT NULL THEN extract(epoch FROM b.at)::float8 END, NULL::float8, NULL::float8
        FROM begins AS b
        JOIN outbox.workflow_states AS w ON w.id = b.workflow_id
        ORDER BY b.at, b.nth, b.priority DESC, b.id;
        first := CASE WHEN gap IS NOT NULL THEN first + make_interval(secs => gap * cardinality(taken)) END;
    END IF;
    IF cardinality(taken) > 0 OR last <> l.served OR first < l.next_at THEN
        UPDATE outbox.limits AS s SET next_at = coalesce(first, s.next_at), served = coalesce(last, s.served)
        WHERE s.pipeline = of_pipeline AND s.stage = of_stage;
    END IF;

    IF NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.pipeline = of_pipeline AND j.stage = of_stage
                   AND CASE WHEN j.owner IS NULL AND j.due THEN j.partition IS NOT NULL END) THEN
        held := NULL;
    ELSE
        held := greatest(extract(epoch FROM first - begun) - ahead / 2, 0,
                         CASE WHEN room > 0 THEN coalesce(waits, CASE WHEN narrow IS NULL THEN 1.0 ELSE ahead / 2 END)
                              WHEN tight THEN 1.0 END);
    END IF;
    RETURN QUERY SELECT of_pipeline, of_stage, NULL::bigint, NULL::text, NULL::bigint, NULL::integer, NULL::boolean,
        NULL::text, NULL::text, NULL::bigint, NULL::text, held, extract(epoch FROM came)::float8,
        extract(epoch FROM clock_timestamp())::float8;
END
$$;

CREATE FUNCTION outbox.messages_written() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    IF EXISTS (SELECT FROM outbox.relays AS r WHERE r.idle) THEN
        PERFORM pg_notify('outbox_relay', '');
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION outbox.moments_return(of_pipeline text, of_stage text, ids uuid[], moments double precision[], slack double precision) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    l      outbox.limits;
    gap    float8;
    narrow float8;
    unused record;
BEGIN
    SELECT s.* INTO l FROM outbox.limits AS s WHERE s.pipeline = of_pipeline AND s.stage = of_stage FOR NO KEY UPDATE;
    gap := 1 / l.rate + slack / greatest(l.rate, 1);
    narrow := 1 / l.partition_rate + slack / greatest(l.partition_rate, 1);
    -- From one on they are the last ones if between it and the next moment lie as many as come back, to half a millisecond.
    UPDATE outbox.limits AS s SET next_at = last.at
    FROM (SELECT to_timestamp(min(m.at)) AS at
          FROM (SELECT m.at, count(*) OVER (ORDER BY m.at DESC) AS n FROM unnest(moments) AS m (at)) AS m
          WHERE abs(extract(epoch FROM l.next_at)::float8 - m.at - gap * m.n) < least(gap / 4, 0.0005)) AS last
    WHERE s.pipeline = of_pipeline AND s.stage = of_stage AND last.at IS NOT NULL;

    -- One after the other: a join of two sides whose sizes nobody knows would be done over for each row of the table.
    FOR unused IN
        SELECT m.partition, to_timestamp(min(m.at)) AS at
        FROM (SELECT j.partition, m.at, count(*) OVER (PARTITION BY j.partition ORDER BY m.at DESC) AS n
              FROM unnest(ids, moments) AS m (id, at)
              CROSS JOIN LATERAL (SELECT j.partition FROM outbox.jobs AS j WHERE j.workflow_id = m.id OFFSET 0) AS j) AS m
        CROSS JOIN LATERAL (
            SELECT extract(epoch FROM r.next_at)::float8 AS next FROM outbox.partition_rates AS r
            WHERE r.pipeline = of_pipeline AND r.stage = of_stage AND r.partition = m.partition OFFSET 0) AS r
        WHERE abs(r.next - m.at - narrow * m.n) < least(narrow / 4, 0.0005)
        GROUP BY m.partition
    LOOP
        UPDATE outbox.partition_rates AS r SET next_at = unused.at
        WHERE r.pipeline = of_pipeline AND r.stage = of_stage AND r.partition = unused.partition;
    END LOOP;
END
$$;

CREATE FUNCTION outbox.partition_of(metadata jsonb, path text[]) RETURNS text
    LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN (cardinality(path) > 0) THEN "left"(COALESCE((metadata #>> path), ''::text), 200) ELSE ''::text END;

CREATE FUNCTION outbox.priority_of(metadata jsonb, path text[]) RETURNS integer
    LANGUAGE sql IMMUTABLE
    RETURN CASE jsonb_typeof((metadata #> path)) WHEN 'number'::text THEN (GREATEST(LEAST(((metadata #>> path))::numeric, (2147483647)::numeric), ('-2147483648'::integer)::numeric))::integer WHEN 'boolean'::text THEN (((metadata #>> path))::boolean)::integer ELSE 0 END;

CREATE FUNCTION outbox.react(ids uuid[], froms text[], tos text[], versions bigint[], actor text, reason text) RETURNS void
    LANGUAGE sql
    BEGIN ATOMIC
 INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata)  SELECT ((w.pipeline || '/'::text) || n.name),
             ((
                 CASE
                     WHEN (char_length(w.entity_id) <= 480) THEN w.entity_id
                     ELSE (w.id)::text
                 END || '@'::text) || c.version),
             jsonb_build_object('pipeline', w.pipeline, 'entity_id', w.entity_id, 'workflow_id', w.id, 'from_status', c.from_status, 'status', c.to_status, 'version', c.version, 'actor', react.actor, 'reason', react.reason, 'at', now(), 'data', w.metadata) AS jsonb_build_object
            FROM (((UNNEST(react.ids, react.froms, react.tos, react.versions) c(id, from_status, to_status, version)
              JOIN outbox.workflow_states w ON ((w.id = c.id)))
              JOIN outbox.routes r ON (((r.pipeline = w.pipeline) AND (r.status = c.to_status))))
              CROSS JOIN LATERAL unnest(r.reactions) n(name))
           ORDER BY c.id, n.name ON CONFLICT(pipeline, entity_id) DO NOTHING;
END;

CREATE FUNCTION outbox.reactions_forget(days double precision, most integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    deleted integer;
BEGIN
    PERFORM set_config('outbox.retention', 'on', true);
    WITH old AS MATERIALIZED (
        SELECT w.id
        FROM outbox.pipelines AS p
        JOIN outbox.workflow_states AS w ON w.pipeline = p.pipeline AND w.current_status = 'DONE'
        WHERE p.reaction_of IS NOT NULL AND w.updated_at < now() - make_interval(secs => days * 86400)
        LIMIT most
        FOR UPDATE OF w SKIP LOCKED
    ), history AS (
        DELETE FROM outbox.state_changes AS c USING old WHERE c.workflow_id = old.id
    ), gone AS (
        DELETE FROM outbox.workflow_states AS w USING old WHERE w.id = old.id RETURNING 1
    )
    SELECT count(*) INTO deleted FROM gone;
    PERFORM set_config('outbox.retention', '', true);
    RETURN deleted;
END
$$;

CREATE FUNCTION outbox.require_held(claim text, jobs integer, held bigint) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF coalesce(current_setting('outbox.claim', true), '') <> claim THEN
        RAISE EXCEPTION 'this is not the transaction that the handler was given' USING ERRCODE = 'OB009';
    ELSIF held < jobs THEN
        RAISE EXCEPTION '% of % jobs are not held any more', jobs - held, jobs USING ERRCODE = 'OB010';
    END IF;
    RETURN true;
END
$$;

CREATE FUNCTION outbox.shown(metadata jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN encode(sha256(convert_to((metadata)::text, 'UTF8'::name)), 'hex'::text);

CREATE FUNCTION outbox.signal_receive() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION outbox.signal_take() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM outbox.signals_take(ARRAY[NEW.workflow_id]);
    RETURN NULL;
END
$$;

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

CREATE FUNCTION outbox.state_changes_are_append_only() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('outbox.retention', true) = 'on' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'outbox.% is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'OB005', HINT = 'Old history goes by retention: outbox worker --keep-history DAYS.';
END
$$;

CREATE FUNCTION outbox.uuid7_time(id uuid) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN to_timestamp((((((('x'::text || translate("left"((id)::text, 13), '-'::text, ''::text)))::bit(48))::bigint)::numeric / 1000.0))::double precision);

CREATE FUNCTION outbox.waits_begin(items jsonb, ids uuid[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    waiting uuid[];
    parent  uuid;
BEGIN
    -- They are begun once: what a signal that is there already moves on comes here again.
    PERFORM set_config('outbox.waits', '', true);

    -- The job of the next stage, later.
    UPDATE outbox.jobs AS j SET run_at = i.run_at, due = i.run_at <= now()
    FROM (SELECT i.id, coalesce(i.at, now() + make_interval(secs => i.after)) AS run_at
          FROM jsonb_to_recordset(items) AS i (id uuid, at timestamptz, after float8)) AS i
    WHERE i.run_at IS NOT NULL AND i.id = ANY (ids) AND j.workflow_id = i.id AND j.stage IS NOT NULL;

    INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version, run_at, due, deadline, on_deadline)
    SELECT w.id, w.pipeline, NULL, w.current_status, w.version, i.deadline, false, i.deadline, i.on_deadline
    FROM (SELECT i.id, now() + make_interval(secs => i.within) AS deadline, i.on_deadline
          FROM jsonb_to_recordset(items) AS i (id uuid, within float8, on_deadline text)) AS i
    JOIN outbox.workflow_states AS w ON w.id = i.id AND i.id = ANY (ids)
    WHERE i.deadline IS NOT NULL
    ORDER BY w.id
    ON CONFLICT (workflow_id) DO UPDATE SET deadline = excluded.deadline, on_deadline = excluded.on_deadline;

    INSERT INTO outbox.approvals (workflow_id, pipeline, entity_id, status, version, question, shown, options, assignee,
                                  deadline, remind_every, remind_at)
    SELECT w.id, w.pipeline, w.entity_id, w.current_status, w.version, i.question, outbox.shown(w.metadata), i.options,
           i.assignee, now() + make_interval(secs => i.within), i.remind_every, now() + i.remind_every
    FROM (SELECT i.*, make_interval(secs => i.remind) AS remind_every
          FROM jsonb_to_recordset(items) AS i (id uuid, question text, options jsonb, assignee text, within float8,
                                               remind float8)) AS i
    JOIN outbox.workflow_states AS w ON w.id = i.id AND i.id = ANY (ids)
    WHERE i.question IS NOT NULL
    ORDER BY w.id;

    -- Children: what is there already is left alone, and is nobody's child by this.
    WITH wanted AS MATERIALIZED (
        SELECT DISTINCT ON (c.pipeline, c.entity) i.id AS parent_id, c.pipeline, c.entity, c.data::jsonb, c.cancel, c.n
        FROM jsonb_to_recordset(items) AS i (id uuid, spawn jsonb)
        CROSS JOIN LATERAL ROWS FROM (jsonb_to_recordset(i.spawn) AS (pipeline text, entity text, data text, cancel text))
            WITH ORDINALITY AS c (pipeline, entity, data, cancel, n)
        WHERE i.id = ANY (ids)
        ORDER BY c.pipeline, c.entity, i.id
    ), made AS (
        INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata)
        SELECT w.pipeline, w.entity, w.data FROM wanted AS w ORDER BY w.parent_id, w.n
        ON CONFLICT (pipeline, entity_id) DO NOTHING
        RETURNING id, pipeline, entity_id
    )
    INSERT INTO outbox.children (child_id, parent_id, cancel_to)
    SELECT m.id, w.parent_id, w.cancel
    FROM made AS m JOIN wanted AS w ON w.pipeline = m.pipeline AND w.entity = m.entity_id;

    FOR parent IN
        WITH made AS (
            INSERT INTO outbox.waits (workflow_id, children, to_status, failed, on_failure)
            SELECT i.id, (SELECT count(*)::integer FROM outbox.children AS c
                          JOIN outbox.workflow_states AS w ON w.id = c.child_id
                          JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
                          WHERE c.parent_id = i.id AND NOT r.final), i.to_status, i.failed, i.on_failure
            FROM jsonb_to_recordset(items) AS i (id uuid, "join" boolean, to_status text, failed text[], on_failure text)
            WHERE i."join" AND i.id = ANY (ids)
            ORDER BY i.id
            RETURNING workflow_id, children
        )
        SELECT made.workflow_id FROM made WHERE made.children = 0 ORDER BY 1
    LOOP
        PERFORM outbox.children_join(parent);
    END LOOP;

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
        PERFORM outbox.signals_take(waiting);
    END IF;
END
$$;

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

CREATE FUNCTION outbox.wake(pipelines text[], stages text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM outbox.workers WHERE idle) THEN
        RETURN;
    END IF;
    PERFORM pg_notify('outbox_' || chosen.id, '')
    FROM (
        SELECT pipeline || '.' || stage AS queue, count(*) AS jobs
        FROM unnest(pipelines, stages) AS made (pipeline, stage)
        WHERE stage IS NOT NULL
        GROUP BY 1
    ) AS made
    CROSS JOIN LATERAL (
        SELECT w.id FROM outbox.workers AS w
        WHERE w.idle AND made.queue = ANY (w.stages)
        ORDER BY random()
        LIMIT made.jobs
    ) AS chosen;
END
$$;

CREATE FUNCTION outbox.workflow_fill_initial() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF NEW.current_status IS NULL THEN
        SELECT p.initial_status INTO NEW.current_status FROM outbox.pipelines AS p WHERE p.pipeline = NEW.pipeline;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'unknown pipeline "%": entity "%" can''t start (from status null to its initial status)',
                NEW.pipeline, NEW.entity_id
                USING ERRCODE = 'OB002', HINT = 'Deploy it first: outbox deploy --app module:object';
        END IF;
    END IF;
    NEW.version := 1;
    NEW.updated_at := NEW.created_at;
    RETURN NEW;
END
$$;

CREATE FUNCTION outbox.workflow_move_version() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF (NEW.id, NEW.pipeline, NEW.entity_id) IS DISTINCT FROM (OLD.id, OLD.pipeline, OLD.entity_id) THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": id, pipeline and entity_id of a workflow can''t be changed',
            OLD.pipeline, OLD.entity_id
            USING ERRCODE = 'OB004', HINT = 'Start a new workflow, and end this one.';
    END IF;
    IF NEW.current_status = OLD.current_status AND NEW.metadata = OLD.metadata THEN
        NEW.version := OLD.version;
        NEW.updated_at := OLD.updated_at;
    ELSE
        NEW.version := OLD.version + 1;
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION outbox.workflows_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    actor     text := outbox.actor();
    reason    text := nullif(current_setting('outbox.reason', true), '');
    worker    integer := nullif(current_setting('outbox.worker', true), '')::integer;
    waits     jsonb := nullif(current_setting('outbox.waits', true), '')::jsonb;  -- what handlers wait for from now on
    -- The changed workflows as parallel arrays: position n of each is workflow n.
    ids       uuid[];
    pipelines text[];
    froms     text[];
    tos       text[];
    versions  bigint[];
    stages    text[];     -- the stage that must run next; null where there is none
    by_stages text[];     -- the stage and the attempt that made the change, if it was this worker's job
    attempts  integer[];
    ending    uuid[];     -- whose open job ends
    keeping   uuid[];     -- whose job goes on: the new status is the in-progress one of its stage
    waited    uuid[];     -- who had no stage at work: they may have waited for somebody
    timed     uuid[];     -- whose new status has a deadline
    final     uuid[];     -- who have ended
    limited   uuid[];     -- whose next stage is limited
    rows      integer;    -- of the statement, those whose status stays as it is included
    reacting  boolean;    -- whether anything reacts to these changes
    unknown   uuid;
    illegal   uuid;
    ended     integer := 0;
    n         integer;
BEGIN
    -- Old and new rows are kept side by side, so they pair by position; a join would be planned once for the
    -- size of the session's first statement, and be quadratic in a bulk UPDATE. Jobs come and go only under
    -- the lock of their workflow's row, which this statement holds: what is read here stays true.
    SELECT array_agg(c.id), array_agg(c.pipeline), array_agg(c.from_status), array_agg(c.to_status),
           array_agg(c.version),
           array_agg(CASE WHEN r.running AND r.stage = j.stage THEN NULL ELSE r.stage END),
           array_agg(CASE WHEN j.owner = worker THEN j.stage END),
           array_agg(CASE WHEN j.owner = worker THEN j.attempt END),
           array_agg(c.id) FILTER (WHERE j.id IS NOT NULL AND (r.running AND r.stage = j.stage) IS NOT TRUE),
           array_agg(c.id) FILTER (WHERE r.running AND r.stage = j.stage),
           array_agg(c.id) FILTER (WHERE j.stage IS NULL),
           array_agg(c.id) FILTER (WHERE r.on_deadline IS NOT NULL),
           array_agg(c.id) FILTER (WHERE r.final),
           array_agg(c.id) FILTER (WHERE r.partition IS NOT NULL AND NOT r.running),
           max(cardinality(n.ids)),
           bool_or(r.reactions IS NOT NULL),
           (array_agg(c.id) FILTER (WHERE r.status IS NULL))[1],
           (array_agg(c.id) FILTER (WHERE l.pipeline IS NULL OR c.id <> c.old_id))[1]
    INTO ids, pipelines, froms, tos, versions, stages, by_stages, attempts, ending, keeping,
         waited, timed, final, limited, rows, reacting, unknown, illegal
    FROM (SELECT array_agg(o.id) AS ids, array_agg(o.current_status) AS statuses FROM old_rows AS o) AS o,
         (SELECT array_agg(n.id) AS ids, array_agg(n.pipeline) AS pipelines,
                 array_agg(n.current_status) AS statuses, array_agg(n.version) AS versions
          FROM new_rows AS n) AS n,
         unnest(o.ids, o.statuses, n.ids, n.pipelines, n.statuses, n.versions)
             AS c (old_id, from_status, id, pipeline, to_status, version)
         LEFT JOIN outbox.legal_changes AS l
             ON l.pipeline = c.pipeline AND l.from_status = c.from_status AND l.to_status = c.to_status
         LEFT JOIN outbox.routes AS r ON r.pipeline = c.pipeline AND r.status = c.to_status
         -- OFFSET keeps it from becoming a join, which would walk over all of a queue that was analyzed when it was empty.
         LEFT JOIN LATERAL (SELECT j.id, j.stage, j.owner, j.attempt FROM outbox.jobs AS j
                            WHERE j.workflow_id = c.id OFFSET 0) AS j ON true
    WHERE c.from_status <> c.to_status;

    -- Where only the data has changed, the job that waits is another customer's now, or more urgent.
    IF ids IS NULL OR cardinality(ids) < rows THEN
        UPDATE outbox.jobs AS j SET partition = k.partition, priority = k.priority
        FROM (SELECT n.id, outbox.partition_of(n.metadata, r.partition) AS partition,
                     outbox.priority_of(n.metadata, r.priority) AS priority
              FROM new_rows AS n
              JOIN outbox.routes AS r ON r.pipeline = n.pipeline AND r.status = n.current_status AND r.partition IS NOT NULL
              WHERE (n.id = ANY (ids)) IS NOT TRUE) AS k
        WHERE j.workflow_id = k.id AND j.workflow_id = ANY (ARRAY(SELECT n.id FROM new_rows AS n)) AND j.owner IS NULL
          AND (j.partition, j.priority) IS DISTINCT FROM (k.partition, k.priority);
    END IF;
    IF ids IS NULL THEN
        RETURN NULL;  -- only metadata has changed, or nothing
    END IF;

    IF unknown IS NOT NULL OR illegal IS NOT NULL THEN
        n := array_position(ids, coalesce(unknown, illegal));
        RAISE EXCEPTION '%: pipeline "%", entity "%", from "%" to "%"',
            CASE WHEN unknown IS NULL THEN 'illegal change' ELSE 'unknown status' END, pipelines[n],
            (SELECT w.entity_id FROM outbox.workflow_states AS w WHERE w.id = ids[n]), froms[n], tos[n]
            USING ERRCODE = CASE WHEN unknown IS NULL THEN 'OB001' ELSE 'OB003' END,
                  HINT = 'outbox.legal_changes lists the changes that the pipeline allows; '
                      || 'Pipeline.allow() and `outbox deploy` add to it.';
    END IF;

    IF ending IS NOT NULL THEN
        DELETE FROM outbox.jobs AS j WHERE j.workflow_id = ANY (ending);
        GET DIAGNOSTICS ended = ROW_COUNT;
    END IF;
    -- A live job and a dead one exclude each other. What was asked of a person is answered by the change.
    IF ended < cardinality(ids) THEN
        DELETE FROM outbox.dead_jobs AS d WHERE d.workflow_id = ANY (ids);
    END IF;
    IF waited IS NOT NULL THEN
        PERFORM outbox.waits_end(array_agg(c.id), array_agg(c.to_status), actor, reason)
        FROM unnest(ids, tos) AS c (id, to_status) WHERE c.id = ANY (waited);
    END IF;
    IF keeping IS NOT NULL THEN
        UPDATE outbox.jobs AS j SET status = c.to_status
        FROM unnest(ids, tos) AS c (id, to_status)
        WHERE j.workflow_id = c.id AND c.id = ANY (keeping);
    END IF;

    INSERT INTO outbox.state_changes (workflow_id, from_status, to_status, version, actor, reason, stage, attempt)
    SELECT c.id, c.from_status, c.to_status, c.version, actor, reason, c.stage, c.attempt
    FROM unnest(ids, froms, tos, versions, by_stages, attempts) AS c (id, from_status, to_status, version, stage, attempt);

    IF limited IS NULL THEN
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version)
        SELECT c.id, c.pipeline, c.stage, c.to_status, c.version
        FROM unnest(ids, pipelines, stages, tos, versions) AS c (id, pipeline, stage, to_status, version)
        WHERE c.stage IS NOT NULL;
    ELSE
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version, partition, priority)
        SELECT c.id, c.pipeline, c.stage, c.to_status, c.version,
               CASE WHEN r.partition IS NOT NULL THEN outbox.partition_of(w.metadata, r.partition) END,
               CASE WHEN r.partition IS NOT NULL THEN outbox.priority_of(w.metadata, r.priority) END
        FROM unnest(ids, pipelines, stages, tos, versions) AS c (id, pipeline, stage, to_status, version)
        JOIN outbox.routes AS r ON r.pipeline = c.pipeline AND r.status = c.to_status
        CROSS JOIN LATERAL (SELECT w.metadata FROM outbox.workflow_states AS w WHERE w.id = c.id OFFSET 0) AS w
        WHERE c.stage IS NOT NULL;
    END IF;
    IF timed IS NOT NULL THEN
        PERFORM outbox.deadlines_set(timed);
    END IF;

    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT c.pipeline, s.status, sum(s.workflows)
    FROM unnest(pipelines, froms, tos) AS c (pipeline, from_status, to_status)
    CROSS JOIN LATERAL (VALUES (c.from_status, -1), (c.to_status, 1)) AS s (status, workflows)
    GROUP BY c.pipeline, s.status HAVING sum(s.workflows) <> 0;

    IF reacting THEN
        PERFORM outbox.react(ids, froms, tos, versions, actor, reason);
    END IF;
    IF waits IS NOT NULL THEN
        PERFORM outbox.waits_begin(waits, ids);
    END IF;
    IF final IS NOT NULL THEN
        PERFORM outbox.children_end(final);
    END IF;
    PERFORM outbox.wake(pipelines, stages);
    RETURN NULL;
END
$$;

CREATE FUNCTION outbox.workflows_deleted() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    ids     uuid[];
    at_work uuid[];
BEGIN
    SELECT array_agg(o.id), array_agg(o.id) FILTER (WHERE NOT r.final) INTO ids, at_work
    FROM old_rows AS o LEFT JOIN outbox.routes AS r ON r.pipeline = o.pipeline AND r.status = o.current_status;
    IF at_work IS NOT NULL THEN
        PERFORM outbox.children_end(at_work);  -- a child that is gone is not waited for
    END IF;
    DELETE FROM outbox.children AS c WHERE c.child_id = ANY (ids);
    DELETE FROM outbox.children AS c WHERE c.parent_id = ANY (ids);
    DELETE FROM outbox.orphans AS o WHERE o.parent_id = ANY (ids);
    DELETE FROM outbox.jobs AS j WHERE j.workflow_id = ANY (ids);
    DELETE FROM outbox.dead_jobs AS d WHERE d.workflow_id = ANY (ids);
    DELETE FROM outbox.waits AS w WHERE w.workflow_id = ANY (ids);
    DELETE FROM outbox.signals AS s WHERE s.workflow_id = ANY (ids);
    DELETE FROM outbox.approvals AS a WHERE a.workflow_id = ANY (ids);
    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT o.pipeline, o.current_status, -count(*) FROM old_rows AS o GROUP BY o.pipeline, o.current_status;
    RETURN NULL;
END
$$;

CREATE FUNCTION outbox.workflows_started() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    actor     text := outbox.actor();
    reason    text := nullif(current_setting('outbox.reason', true), '');
    stranger  record;
    pipelines text[];
    stages    text[];
BEGIN
    SELECT s.pipeline, s.entity_id, s.current_status,
           EXISTS (SELECT FROM outbox.pipelines AS p WHERE p.pipeline = s.pipeline) AS known
    INTO stranger
    FROM new_rows AS s
    LEFT JOIN outbox.routes AS r ON r.pipeline = s.pipeline AND r.status = s.current_status
    WHERE r.status IS NULL
    LIMIT 1;
    IF FOUND AND NOT stranger.known THEN
        RAISE EXCEPTION 'unknown pipeline "%": entity "%" can''t start (from status null to "%")',
            stranger.pipeline, stranger.entity_id, stranger.current_status
            USING ERRCODE = 'OB002', HINT = 'Deploy it first: outbox deploy --app module:object';
    ELSIF FOUND THEN
        RAISE EXCEPTION 'unknown status: pipeline "%", entity "%", from null to "%"',
            stranger.pipeline, stranger.entity_id, stranger.current_status
            USING ERRCODE = 'OB003', HINT = 'outbox.routes lists the statuses that the pipeline knows.';
    END IF;

    INSERT INTO outbox.state_changes (workflow_id, to_status, version, actor, reason)
    SELECT s.id, s.current_status, s.version, actor, reason FROM new_rows AS s;

    WITH made AS (
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version, run_at, due, deadline, on_deadline,
                                 partition, priority)
        SELECT s.id, s.pipeline, r.stage, s.current_status, s.version,
               CASE WHEN r.stage IS NULL THEN now() + r.deadline ELSE now() END, r.stage IS NOT NULL,
               now() + r.deadline, r.on_deadline,
               CASE WHEN r.partition IS NOT NULL THEN outbox.partition_of(s.metadata, r.partition) END,
               CASE WHEN r.partition IS NOT NULL THEN outbox.priority_of(s.metadata, r.priority) END
        FROM new_rows AS s
        JOIN outbox.routes AS r ON r.pipeline = s.pipeline AND r.status = s.current_status
        WHERE r.stage IS NOT NULL OR r.on_deadline IS NOT NULL
        RETURNING pipeline, stage
    )
    SELECT array_agg(made.pipeline), array_agg(made.stage) INTO pipelines, stages FROM made;

    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT s.pipeline, s.current_status, count(*) FROM new_rows AS s GROUP BY s.pipeline, s.current_status;

    IF EXISTS (SELECT FROM new_rows AS s JOIN outbox.routes AS r ON r.pipeline = s.pipeline AND r.status = s.current_status
               WHERE r.reactions IS NOT NULL) THEN
        PERFORM outbox.react(array_agg(s.id), array_agg(NULL::text), array_agg(s.current_status), array_agg(s.version), actor, reason)
        FROM new_rows AS s;
    END IF;
    PERFORM outbox.wake(pipelines, stages);
    RETURN NULL;
END
$$;

CREATE TABLE outbox.approvals (
    id uuid DEFAULT outbox.uuid7() NOT NULL,
    workflow_id uuid NOT NULL,
    pipeline text NOT NULL COLLATE pg_catalog."C",
    entity_id text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    question text NOT NULL,
    shown text NOT NULL,
    options jsonb NOT NULL,
    assignee text,
    asked_at timestamp with time zone DEFAULT now() NOT NULL,
    deadline timestamp with time zone,
    remind_every interval,
    remind_at timestamp with time zone,
    reminders integer DEFAULT 0 NOT NULL,
    ended text,
    decision text,
    to_status text COLLATE pg_catalog."C",
    decided_by text,
    reason text,
    edited jsonb,
    ended_at timestamp with time zone,
    CONSTRAINT approvals_end_at_once CHECK (((ended IS NULL) = (ended_at IS NULL))),
    CONSTRAINT approvals_ended_how CHECK ((ended = ANY (ARRAY['decided'::text, 'deadline'::text, 'withdrawn'::text])))
);

CREATE TABLE outbox.checkpoints (
    workflow_id uuid NOT NULL,
    stage text NOT NULL COLLATE pg_catalog."C",
    entered bigint NOT NULL,
    key text NOT NULL COLLATE pg_catalog."C",
    function text NOT NULL,
    result jsonb NOT NULL,
    attempt integer NOT NULL,
    made_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE outbox.children (
    child_id uuid NOT NULL,
    parent_id uuid NOT NULL,
    cancel_to text COLLATE pg_catalog."C"
);

CREATE TABLE outbox.dead_jobs (
    workflow_id uuid NOT NULL,
    pipeline text NOT NULL COLLATE pg_catalog."C",
    entity_id text NOT NULL COLLATE pg_catalog."C",
    stage text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    attempts integer NOT NULL,
    error text NOT NULL,
    died_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE outbox.delivery_attempts (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    attempts integer NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE outbox.inbox (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
)
PARTITION BY LIST ((((((('x'::text || translate("left"((message_id)::text, 13), '-'::text, ''::text)))::bit(48))::bigint / 604800000) % (32)::bigint)));

CREATE TABLE outbox.inbox_00 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_01 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_02 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_03 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_04 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_05 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_06 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_07 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_08 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_09 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_10 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_11 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_12 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_13 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_14 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_15 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_16 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_17 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_18 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_19 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_20 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_21 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_22 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_23 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_24 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_25 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_26 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_27 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_28 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_29 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_30 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE TABLE outbox.inbox_31 (
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    message_id uuid NOT NULL,
    received_at timestamp with time zone DEFAULT now() CONSTRAINT inbox_received_at_not_null NOT NULL,
    CONSTRAINT inbox_consumer_not_empty CHECK (((consumer)::text <> ''::text))
);

CREATE SEQUENCE outbox.job_ids
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE outbox.job_ids OWNED BY outbox.jobs.id;

CREATE TABLE outbox.legal_changes (
    pipeline text NOT NULL COLLATE pg_catalog."C",
    from_status text NOT NULL COLLATE pg_catalog."C",
    to_status text NOT NULL COLLATE pg_catalog."C"
);

CREATE TABLE outbox.limits (
    pipeline text NOT NULL COLLATE pg_catalog."C",
    stage text NOT NULL COLLATE pg_catalog."C",
    concurrency integer,
    rate double precision,
    partition_concurrency integer,
    partition_rate double precision,
    partitioned boolean NOT NULL,
    next_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    served text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C",
    CONSTRAINT limits_let_something_begin CHECK (((concurrency >= 1) AND (partition_concurrency >= 1))),
    CONSTRAINT limits_rates_in_range CHECK (((rate > (0)::double precision) AND (rate <= ('1000000'::numeric)::double precision) AND (partition_rate > (0)::double precision) AND (partition_rate <= ('1000000'::numeric)::double precision)))
)
WITH (fillfactor='50');

CREATE TABLE outbox.messages (
    id bigint NOT NULL,
    message_id uuid DEFAULT outbox.uuid7() NOT NULL,
    topic text NOT NULL COLLATE pg_catalog."C",
    key text COLLATE pg_catalog."C",
    payload jsonb,
    headers jsonb,
    workflow_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT messages_topic_not_empty CHECK ((topic <> ''::text))
)
PARTITION BY LIST ((((id / 1000000) % (4)::bigint)));

CREATE SEQUENCE outbox.message_ids
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE outbox.message_ids OWNED BY outbox.messages.id;

CREATE TABLE outbox.messages_0 (
    id bigint DEFAULT nextval('outbox.message_ids'::regclass) CONSTRAINT messages_id_not_null NOT NULL,
    message_id uuid DEFAULT outbox.uuid7() CONSTRAINT messages_message_id_not_null NOT NULL,
    topic text CONSTRAINT messages_topic_not_null NOT NULL COLLATE pg_catalog."C",
    key text COLLATE pg_catalog."C",
    payload jsonb,
    headers jsonb,
    workflow_id uuid,
    created_at timestamp with time zone DEFAULT now() CONSTRAINT messages_created_at_not_null NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() CONSTRAINT messages_xid_not_null NOT NULL,
    CONSTRAINT messages_topic_not_empty CHECK ((topic <> ''::text))
);

CREATE TABLE outbox.messages_1 (
    id bigint DEFAULT nextval('outbox.message_ids'::regclass) CONSTRAINT messages_id_not_null NOT NULL,
    message_id uuid DEFAULT outbox.uuid7() CONSTRAINT messages_message_id_not_null NOT NULL,
    topic text CONSTRAINT messages_topic_not_null NOT NULL COLLATE pg_catalog."C",
    key text COLLATE pg_catalog."C",
    payload jsonb,
    headers jsonb,
    workflow_id uuid,
    created_at timestamp with time zone DEFAULT now() CONSTRAINT messages_created_at_not_null NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() CONSTRAINT messages_xid_not_null NOT NULL,
    CONSTRAINT messages_topic_not_empty CHECK ((topic <> ''::text))
);

CREATE TABLE outbox.messages_2 (
    id bigint DEFAULT nextval('outbox.message_ids'::regclass) CONSTRAINT messages_id_not_null NOT NULL,
    message_id uuid DEFAULT outbox.uuid7() CONSTRAINT messages_message_id_not_null NOT NULL,
    topic text CONSTRAINT messages_topic_not_null NOT NULL COLLATE pg_catalog."C",
    key text COLLATE pg_catalog."C",
    payload jsonb,
    headers jsonb,
    workflow_id uuid,
    created_at timestamp with time zone DEFAULT now() CONSTRAINT messages_created_at_not_null NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() CONSTRAINT messages_xid_not_null NOT NULL,
    CONSTRAINT messages_topic_not_empty CHECK ((topic <> ''::text))
);

CREATE TABLE outbox.messages_3 (
    id bigint DEFAULT nextval('outbox.message_ids'::regclass) CONSTRAINT messages_id_not_null NOT NULL,
    message_id uuid DEFAULT outbox.uuid7() CONSTRAINT messages_message_id_not_null NOT NULL,
    topic text CONSTRAINT messages_topic_not_null NOT NULL COLLATE pg_catalog."C",
    key text COLLATE pg_catalog."C",
    payload jsonb,
    headers jsonb,
    workflow_id uuid,
    created_at timestamp with time zone DEFAULT now() CONSTRAINT messages_created_at_not_null NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() CONSTRAINT messages_xid_not_null NOT NULL,
    CONSTRAINT messages_topic_not_empty CHECK ((topic <> ''::text))
);

CREATE TABLE outbox.orphans (
    parent_id uuid NOT NULL
);

CREATE TABLE outbox.pauses (
    pipeline text NOT NULL COLLATE pg_catalog."C",
    stage text NOT NULL COLLATE pg_catalog."C",
    paused_by text DEFAULT outbox.actor() NOT NULL,
    reason text,
    paused_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE outbox.status_counts (
    pipeline text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    workflows bigint NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000');

CREATE VIEW outbox.overview AS
 WITH workflows AS (
         SELECT status_counts.pipeline,
            status_counts.status,
            (sum(status_counts.workflows))::bigint AS n
           FROM outbox.status_counts
          GROUP BY status_counts.pipeline, status_counts.status
        ), scheduled AS (
         SELECT jobs.pipeline,
            jobs.stage,
            jobs.status,
            count(*) AS n
           FROM outbox.jobs
          WHERE ((jobs.owner IS NULL) AND (NOT jobs.due) AND (jobs.stage IS NOT NULL) AND (jobs.run_at > now()))
          GROUP BY jobs.pipeline, jobs.stage, jobs.status
        ), running AS (
         SELECT jobs.pipeline,
            jobs.stage,
            jobs.status,
            count(*) AS n
           FROM outbox.jobs
          WHERE (jobs.owner IS NOT NULL)
          GROUP BY jobs.pipeline, jobs.stage, jobs.status
        ), dead AS (
         SELECT dead_jobs.pipeline,
            dead_jobs.stage,
            dead_jobs.status,
            count(*) AS n
           FROM outbox.dead_jobs
          GROUP BY dead_jobs.pipeline, dead_jobs.stage, dead_jobs.status
        )
 SELECT r.pipeline,
    r.status,
    r.stage,
    COALESCE(w.n, (0)::bigint) AS workflows,
        CASE
            WHEN (r.stage IS NULL) THEN (0)::bigint
            ELSE GREATEST((((COALESCE(w.n, (0)::bigint) - COALESCE(s.n, (0)::bigint)) - COALESCE(c.n, (0)::bigint)) - COALESCE(d.n, (0)::bigint)), (0)::bigint)
        END AS ready,
    COALESCE(s.n, (0)::bigint) AS scheduled,
    COALESCE(c.n, (0)::bigint) AS running,
    COALESCE(d.n, (0)::bigint) AS dead,
        CASE
            WHEN r.running THEN NULL::interval
            ELSE (now() - ( SELECT min(o.run_at) AS min
               FROM ( SELECT j.run_at
                       FROM outbox.jobs j
                      WHERE ((j.pipeline = r.pipeline) AND (j.stage = r.stage) AND (NOT j.careful) AND (j.owner IS NULL) AND j.due)
                      ORDER BY j.id
                     LIMIT 1) o))
        END AS oldest_waiting,
    (EXISTS ( SELECT
           FROM outbox.pauses p
          WHERE ((p.pipeline = r.pipeline) AND (p.stage = r.stage)))) AS paused
   FROM ((((outbox.routes r
     LEFT JOIN workflows w ON (((w.pipeline = r.pipeline) AND (w.status = r.status))))
     LEFT JOIN scheduled s ON (((s.pipeline = r.pipeline) AND (s.status = r.status) AND (s.stage = r.stage))))
     LEFT JOIN running c ON (((c.pipeline = r.pipeline) AND (c.status = r.status) AND (c.stage = r.stage))))
     LEFT JOIN dead d ON (((d.pipeline = r.pipeline) AND (d.status = r.status) AND (d.stage = r.stage))));

CREATE TABLE outbox.parked_deliveries (
    id bigint NOT NULL,
    consumer character varying(63) NOT NULL COLLATE pg_catalog."C",
    queue text NOT NULL,
    message_id text COLLATE pg_catalog."C",
    topic text COLLATE pg_catalog."C",
    body bytea NOT NULL,
    headers jsonb NOT NULL,
    reason text NOT NULL,
    deliveries integer DEFAULT 1 NOT NULL,
    digest bytea NOT NULL,
    retry boolean DEFAULT false NOT NULL,
    parked_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE outbox.parked_deliveries ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.parked_deliveries_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.parked_messages (
    relay text NOT NULL COLLATE pg_catalog."C",
    id bigint NOT NULL,
    message_id uuid NOT NULL,
    topic text NOT NULL COLLATE pg_catalog."C",
    key text COLLATE pg_catalog."C",
    payload jsonb,
    headers jsonb,
    workflow_id uuid,
    created_at timestamp with time zone NOT NULL,
    reason text NOT NULL,
    retry boolean DEFAULT false NOT NULL,
    parked_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE outbox.partition_rates (
    pipeline text NOT NULL COLLATE pg_catalog."C",
    stage text NOT NULL COLLATE pg_catalog."C",
    partition text NOT NULL COLLATE pg_catalog."C",
    next_at timestamp with time zone NOT NULL
)
WITH (fillfactor='70');

CREATE TABLE outbox.pipelines (
    pipeline text NOT NULL COLLATE pg_catalog."C",
    initial_status text NOT NULL COLLATE pg_catalog."C",
    definition jsonb DEFAULT '{}'::jsonb NOT NULL,
    deployed_at timestamp with time zone DEFAULT now() NOT NULL,
    reaction_of text COLLATE pg_catalog."C"
);

CREATE TABLE outbox.relays (
    name text NOT NULL COLLATE pg_catalog."C",
    epoch bigint DEFAULT 0 NOT NULL,
    owner text,
    target text,
    cluster text NOT NULL,
    window_start pg_snapshot NOT NULL,
    window_end pg_snapshot,
    "position" bigint DEFAULT 0 NOT NULL,
    relayed bigint DEFAULT 0 NOT NULL,
    trouble text,
    idle boolean DEFAULT false NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
)
WITH (fillfactor='20', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='100');

CREATE TABLE outbox.schedules (
    pipeline text NOT NULL COLLATE pg_catalog."C",
    schedule text NOT NULL COLLATE pg_catalog."C",
    cron text NOT NULL,
    timezone text NOT NULL,
    catch_up boolean NOT NULL,
    next_at timestamp with time zone NOT NULL,
    last_at timestamp with time zone,
    ran_at timestamp with time zone,
    attempts integer DEFAULT 0 NOT NULL,
    retry_at timestamp with time zone,
    error text
)
WITH (fillfactor='50');

CREATE TABLE outbox.schema_migrations (
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE outbox.signals (
    id bigint NOT NULL,
    workflow_id uuid NOT NULL,
    pipeline text NOT NULL COLLATE pg_catalog."C",
    entity_id text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    payload jsonb,
    signal_id text COLLATE pg_catalog."C",
    sent_by text NOT NULL,
    sent_at timestamp with time zone DEFAULT now() NOT NULL,
    taken_at timestamp with time zone
);

ALTER TABLE outbox.signals ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.signals_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.stages (
    pipeline text NOT NULL COLLATE pg_catalog."C",
    stage text NOT NULL COLLATE pg_catalog."C",
    max_attempts integer NOT NULL,
    CONSTRAINT stages_max_attempts_positive CHECK ((max_attempts > 0))
);

CREATE TABLE outbox.state_changes (
    id bigint NOT NULL,
    workflow_id uuid NOT NULL,
    from_status text COLLATE pg_catalog."C",
    to_status text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    actor text NOT NULL,
    reason text,
    stage text COLLATE pg_catalog."C",
    attempt integer,
    at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE outbox.state_changes ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME outbox.state_changes_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.waits (
    workflow_id uuid NOT NULL,
    signal text COLLATE pg_catalog."C",
    to_status text NOT NULL COLLATE pg_catalog."C",
    field text,
    since timestamp with time zone DEFAULT now() NOT NULL,
    children integer,
    failed text[],
    on_failure text COLLATE pg_catalog."C",
    CONSTRAINT waits_are_for_one_thing CHECK ((num_nonnulls(signal, children) = 1))
);

CREATE TABLE outbox.workers (
    id integer NOT NULL,
    name text NOT NULL,
    stages text[] NOT NULL,
    lease interval NOT NULL,
    idle boolean DEFAULT false NOT NULL,
    watched boolean DEFAULT false NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    beat_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT workers_lease_positive CHECK ((lease > '00:00:00'::interval))
)
WITH (fillfactor='50');

ALTER TABLE outbox.workers ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.workers_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_00 FOR VALUES IN ('0');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_01 FOR VALUES IN ('1');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_02 FOR VALUES IN ('2');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_03 FOR VALUES IN ('3');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_04 FOR VALUES IN ('4');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_05 FOR VALUES IN ('5');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_06 FOR VALUES IN ('6');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_07 FOR VALUES IN ('7');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_08 FOR VALUES IN ('8');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_09 FOR VALUES IN ('9');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_10 FOR VALUES IN ('10');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_11 FOR VALUES IN ('11');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_12 FOR VALUES IN ('12');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_13 FOR VALUES IN ('13');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_14 FOR VALUES IN ('14');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_15 FOR VALUES IN ('15');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_16 FOR VALUES IN ('16');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_17 FOR VALUES IN ('17');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_18 FOR VALUES IN ('18');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_19 FOR VALUES IN ('19');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_20 FOR VALUES IN ('20');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_21 FOR VALUES IN ('21');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_22 FOR VALUES IN ('22');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_23 FOR VALUES IN ('23');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_24 FOR VALUES IN ('24');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_25 FOR VALUES IN ('25');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_26 FOR VALUES IN ('26');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_27 FOR VALUES IN ('27');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_28 FOR VALUES IN ('28');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_29 FOR VALUES IN ('29');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_30 FOR VALUES IN ('30');

ALTER TABLE ONLY outbox.inbox ATTACH PARTITION outbox.inbox_31 FOR VALUES IN ('31');

ALTER TABLE ONLY outbox.messages ATTACH PARTITION outbox.messages_0 FOR VALUES IN ('0');

ALTER TABLE ONLY outbox.messages ATTACH PARTITION outbox.messages_1 FOR VALUES IN ('1');

ALTER TABLE ONLY outbox.messages ATTACH PARTITION outbox.messages_2 FOR VALUES IN ('2');

ALTER TABLE ONLY outbox.messages ATTACH PARTITION outbox.messages_3 FOR VALUES IN ('3');

ALTER TABLE ONLY outbox.jobs ALTER COLUMN id SET DEFAULT nextval('outbox.job_ids'::regclass);

ALTER TABLE ONLY outbox.messages ALTER COLUMN id SET DEFAULT nextval('outbox.message_ids'::regclass);

ALTER TABLE ONLY outbox.approvals
    ADD CONSTRAINT approvals_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.checkpoints
    ADD CONSTRAINT checkpoints_pkey PRIMARY KEY (workflow_id, entered, stage, key);

ALTER TABLE ONLY outbox.children
    ADD CONSTRAINT children_pkey PRIMARY KEY (child_id);

ALTER TABLE ONLY outbox.dead_jobs
    ADD CONSTRAINT dead_jobs_pkey PRIMARY KEY (workflow_id);

ALTER TABLE ONLY outbox.delivery_attempts
    ADD CONSTRAINT delivery_attempts_pkey PRIMARY KEY (consumer, message_id);

ALTER TABLE ONLY outbox.inbox_00
    ADD CONSTRAINT inbox_00_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_01
    ADD CONSTRAINT inbox_01_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_02
    ADD CONSTRAINT inbox_02_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_03
    ADD CONSTRAINT inbox_03_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_04
    ADD CONSTRAINT inbox_04_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_05
    ADD CONSTRAINT inbox_05_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_06
    ADD CONSTRAINT inbox_06_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_07
    ADD CONSTRAINT inbox_07_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_08
    ADD CONSTRAINT inbox_08_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_09
    ADD CONSTRAINT inbox_09_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_10
    ADD CONSTRAINT inbox_10_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_11
    ADD CONSTRAINT inbox_11_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_12
    ADD CONSTRAINT inbox_12_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_13
    ADD CONSTRAINT inbox_13_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_14
    ADD CONSTRAINT inbox_14_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_15
    ADD CONSTRAINT inbox_15_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_16
    ADD CONSTRAINT inbox_16_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_17
    ADD CONSTRAINT inbox_17_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_18
    ADD CONSTRAINT inbox_18_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_19
    ADD CONSTRAINT inbox_19_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_20
    ADD CONSTRAINT inbox_20_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_21
    ADD CONSTRAINT inbox_21_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_22
    ADD CONSTRAINT inbox_22_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_23
    ADD CONSTRAINT inbox_23_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_24
    ADD CONSTRAINT inbox_24_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_25
    ADD CONSTRAINT inbox_25_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_26
    ADD CONSTRAINT inbox_26_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_27
    ADD CONSTRAINT inbox_27_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_28
    ADD CONSTRAINT inbox_28_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_29
    ADD CONSTRAINT inbox_29_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_30
    ADD CONSTRAINT inbox_30_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.inbox_31
    ADD CONSTRAINT inbox_31_pkey PRIMARY KEY (message_id, consumer);

ALTER TABLE ONLY outbox.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (workflow_id);

ALTER TABLE outbox.jobs
    ADD CONSTRAINT jobs_run_at_finite CHECK (isfinite(run_at)) NOT VALID;

ALTER TABLE ONLY outbox.legal_changes
    ADD CONSTRAINT legal_changes_pkey PRIMARY KEY (pipeline, from_status, to_status);

ALTER TABLE ONLY outbox.limits
    ADD CONSTRAINT limits_pkey PRIMARY KEY (pipeline, stage);

ALTER TABLE ONLY outbox.orphans
    ADD CONSTRAINT orphans_pkey PRIMARY KEY (parent_id);

ALTER TABLE ONLY outbox.parked_deliveries
    ADD CONSTRAINT parked_deliveries_content_key UNIQUE (consumer, digest);

ALTER TABLE ONLY outbox.parked_deliveries
    ADD CONSTRAINT parked_deliveries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.parked_messages
    ADD CONSTRAINT parked_messages_pkey PRIMARY KEY (relay, id);

ALTER TABLE ONLY outbox.partition_rates
    ADD CONSTRAINT partition_rates_pkey PRIMARY KEY (pipeline, stage, partition);

ALTER TABLE ONLY outbox.pauses
    ADD CONSTRAINT pauses_pkey PRIMARY KEY (pipeline, stage);

ALTER TABLE ONLY outbox.pipelines
    ADD CONSTRAINT pipelines_pkey PRIMARY KEY (pipeline);

ALTER TABLE ONLY outbox.relays
    ADD CONSTRAINT relays_pkey PRIMARY KEY (name);

ALTER TABLE ONLY outbox.routes
    ADD CONSTRAINT routes_pkey PRIMARY KEY (pipeline, status);

ALTER TABLE ONLY outbox.schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (pipeline, schedule);

ALTER TABLE ONLY outbox.schema_migrations
    ADD CONSTRAINT schema_migrations_pkey PRIMARY KEY (name);

ALTER TABLE ONLY outbox.signals
    ADD CONSTRAINT signals_are_one_by_id UNIQUE (workflow_id, name, signal_id);

ALTER TABLE ONLY outbox.signals
    ADD CONSTRAINT signals_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.stages
    ADD CONSTRAINT stages_pkey PRIMARY KEY (pipeline, stage);

ALTER TABLE ONLY outbox.state_changes
    ADD CONSTRAINT state_changes_pkey PRIMARY KEY (workflow_id, version);

ALTER TABLE ONLY outbox.waits
    ADD CONSTRAINT waits_pkey PRIMARY KEY (workflow_id);

ALTER TABLE ONLY outbox.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.workflow_states
    ADD CONSTRAINT workflow_states_entity_key UNIQUE (pipeline, entity_id);

ALTER TABLE ONLY outbox.workflow_states
    ADD CONSTRAINT workflow_states_pkey PRIMARY KEY (id);

CREATE INDEX approvals_by_workflow ON outbox.approvals USING btree (workflow_id, version);

CREATE UNIQUE INDEX approvals_open ON outbox.approvals USING btree (workflow_id) WHERE (ended_at IS NULL);

CREATE INDEX approvals_to_remind ON outbox.approvals USING btree (remind_at) WHERE ((ended_at IS NULL) AND (remind_at IS NOT NULL));

CREATE INDEX checkpoints_by_time ON outbox.checkpoints USING brin (made_at) WITH (autosummarize='on');

CREATE INDEX children_by_parent ON outbox.children USING btree (parent_id);

CREATE INDEX dead_jobs_by_stage ON outbox.dead_jobs USING btree (pipeline, stage, status);

CREATE INDEX dead_jobs_by_time ON outbox.dead_jobs USING btree (died_at);

CREATE INDEX jobs_ready_by_partition ON outbox.jobs USING btree (pipeline, stage, partition, priority DESC, id) WHERE 
CASE
    WHEN ((owner IS NULL) AND due) THEN (partition IS NOT NULL)
    ELSE NULL::boolean
END;

CREATE INDEX jobs_ready_for_claim ON outbox.jobs USING btree (pipeline, stage, careful, id) WHERE ((owner IS NULL) AND due);

CREATE INDEX jobs_running ON outbox.jobs USING btree (owner, id) WHERE (owner IS NOT NULL);

CREATE INDEX jobs_running_by_partition ON outbox.jobs USING btree (pipeline, stage, partition) WHERE ((owner IS NOT NULL) AND (partition IS NOT NULL));

CREATE INDEX jobs_scheduled ON outbox.jobs USING btree (run_at) INCLUDE (pipeline, stage, status) WHERE ((owner IS NULL) AND (NOT due) AND (stage IS NOT NULL));

CREATE INDEX jobs_with_deadline ON outbox.jobs USING btree (deadline) WHERE (deadline IS NOT NULL);

CREATE INDEX messages_by_workflow ON ONLY outbox.messages USING btree (workflow_id) WHERE (workflow_id IS NOT NULL);

CREATE INDEX messages_0_workflow_id_idx ON outbox.messages_0 USING btree (workflow_id) WHERE (workflow_id IS NOT NULL);

CREATE INDEX messages_by_transaction ON ONLY outbox.messages USING btree (xid);

CREATE INDEX messages_0_xid_idx ON outbox.messages_0 USING btree (xid);

CREATE INDEX messages_1_workflow_id_idx ON outbox.messages_1 USING btree (workflow_id) WHERE (workflow_id IS NOT NULL);

CREATE INDEX messages_1_xid_idx ON outbox.messages_1 USING btree (xid);

CREATE INDEX messages_2_workflow_id_idx ON outbox.messages_2 USING btree (workflow_id) WHERE (workflow_id IS NOT NULL);

CREATE INDEX messages_2_xid_idx ON outbox.messages_2 USING btree (xid);

CREATE INDEX messages_3_workflow_id_idx ON outbox.messages_3 USING btree (workflow_id) WHERE (workflow_id IS NOT NULL);

CREATE INDEX messages_3_xid_idx ON outbox.messages_3 USING btree (xid);

CREATE INDEX parked_deliveries_to_retry ON outbox.parked_deliveries USING btree (consumer, id) WHERE retry;

CREATE INDEX parked_messages_by_key ON outbox.parked_messages USING btree (relay, key) WHERE (key IS NOT NULL);

CREATE INDEX relays_idle ON outbox.relays USING btree (name) WHERE idle;

CREATE INDEX signals_to_take ON outbox.signals USING btree (workflow_id, name, id) WHERE (taken_at IS NULL);

CREATE INDEX state_changes_by_time ON outbox.state_changes USING brin (at) WITH (autosummarize='on');

ALTER INDEX outbox.messages_by_workflow ATTACH PARTITION outbox.messages_0_workflow_id_idx;

ALTER INDEX outbox.messages_by_transaction ATTACH PARTITION outbox.messages_0_xid_idx;

ALTER INDEX outbox.messages_by_workflow ATTACH PARTITION outbox.messages_1_workflow_id_idx;

ALTER INDEX outbox.messages_by_transaction ATTACH PARTITION outbox.messages_1_xid_idx;

ALTER INDEX outbox.messages_by_workflow ATTACH PARTITION outbox.messages_2_workflow_id_idx;

ALTER INDEX outbox.messages_by_transaction ATTACH PARTITION outbox.messages_2_xid_idx;

ALTER INDEX outbox.messages_by_workflow ATTACH PARTITION outbox.messages_3_workflow_id_idx;

ALTER INDEX outbox.messages_by_transaction ATTACH PARTITION outbox.messages_3_xid_idx;

CREATE TRIGGER inbox_refuse BEFORE INSERT ON outbox.inbox FOR EACH ROW EXECUTE FUNCTION outbox.inbox_refuse();

CREATE TRIGGER messages_written AFTER INSERT ON outbox.messages FOR EACH STATEMENT EXECUTE FUNCTION outbox.messages_written();

CREATE TRIGGER signal_receive BEFORE INSERT ON outbox.signals FOR EACH ROW EXECUTE FUNCTION outbox.signal_receive();

CREATE TRIGGER signal_take AFTER INSERT ON outbox.signals FOR EACH ROW EXECUTE FUNCTION outbox.signal_take();

CREATE TRIGGER state_changes_are_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON outbox.state_changes FOR EACH STATEMENT EXECUTE FUNCTION outbox.state_changes_are_append_only();

CREATE TRIGGER workflow_fill_initial BEFORE INSERT ON outbox.workflow_states FOR EACH ROW WHEN (((new.current_status IS NULL) OR (new.version <> 1))) EXECUTE FUNCTION outbox.workflow_fill_initial();

CREATE TRIGGER workflow_move_version BEFORE UPDATE ON outbox.workflow_states FOR EACH ROW WHEN (((new.version <> (old.version + 1)) OR (new.current_status = old.current_status) OR (new.updated_at <> now()) OR (new.id <> old.id) OR (new.pipeline <> old.pipeline) OR (new.entity_id <> old.entity_id))) EXECUTE FUNCTION outbox.workflow_move_version();

CREATE TRIGGER workflow_states_are_not_truncated BEFORE TRUNCATE ON outbox.workflow_states FOR EACH STATEMENT EXECUTE FUNCTION outbox.state_changes_are_append_only();

CREATE TRIGGER workflows_changed AFTER UPDATE ON outbox.workflow_states REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION outbox.workflows_changed();

CREATE TRIGGER workflows_deleted AFTER DELETE ON outbox.workflow_states REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION outbox.workflows_deleted();

CREATE TRIGGER workflows_started AFTER INSERT ON outbox.workflow_states REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION outbox.workflows_started();
