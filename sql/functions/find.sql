-- Lists of workflows, page by page. Each list is read along an index that leads to its rows, in an order in which a workflow that
-- stays in the list keeps its place, and one that comes again has a later one:
--   e  those of an entity prefix: by entity, along workflow_states_entity_key
--   q  those that ask a person: the oldest question first, along approvals_open_by_...
--   d  those with a dead job: the latest first, along dead_jobs_by_status or dead_jobs_by_kind
--   p  others that have not ended: the one first that has waited longest, along the indexes of jobs, dead_jobs and resting
--   i  all, or those in a final status: the newest first, along workflow_states_pkey
-- `after` is the cursor of the last row of the page before: the letter, and where to go on.
--
-- What no index leads to is looked for among the next rows of the list, and only so many of them: a list that has looked at
-- its bound ends with a row that has nothing but a cursor, by which it goes on.
--
-- Plans are custom, so that what is null falls away when it is planned. No bitmaps and no scans of tables: they would read all
-- rows before they return the first. For the same reason the rows come through a cursor of plpgsql.

-- Which way a list is read. Refuses a wait that there is not, and the cursor of another list.
CREATE OR REPLACE FUNCTION outbox.find_way(
    of_pipeline text, in_status text, entity_prefix text, older_than interval, assigned_to text, waiting_for text, dead boolean,
    after text
) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    wait text := split_part(waiting_for, ' ', 1);
    way  text;
BEGIN
    IF wait NOT IN ('approval', 'signal', 'children', 'deadline', 'timer', 'worker', 'change')
        OR waiting_for LIKE '% %' AND wait <> 'signal' THEN
        RAISE EXCEPTION 'no workflow waits for "%"', waiting_for USING ERRCODE = 'invalid_parameter_value',
            HINT = 'It is approval, signal, signal NAME, children, deadline, timer, worker or change.';
    END IF;
    way := CASE
        WHEN entity_prefix IS NOT NULL THEN 'e'
        WHEN assigned_to IS NOT NULL OR wait = 'approval' THEN 'q'
        WHEN dead THEN 'd'
        WHEN in_status IS NULL AND (older_than IS NOT NULL OR wait IS NOT NULL) OR EXISTS (
            SELECT FROM outbox.routes AS r
            WHERE r.status = in_status AND NOT r.final AND (of_pipeline IS NULL OR r.pipeline = of_pipeline)) THEN 'p'
        ELSE 'i' END;
    IF left(after, 2) <> way || ':' OR substr(after, 3) !~ (CASE
        WHEN way IN ('p', 'd') THEN '^[0-9]{1,18}$' WHEN way = 'e' THEN '^\[".*", ".*"\]$' ELSE '^[0-9a-f-]{36}$' END) THEN
        RAISE EXCEPTION 'the cursor "%" is not of this list', after
            USING ERRCODE = 'OB034', DETAIL = jsonb_build_object('after', after)::text,
            HINT = 'A list goes on with the filters that it began with.';
    END IF;
    RETURN way;
END
$$;
COMMENT ON FUNCTION outbox.find_way(text, text, text, interval, text, text, boolean, text) IS 'Internal: which way a list is read.';

-- Way e: by entity. Its key is the entity and the pipeline.
CREATE OR REPLACE FUNCTION outbox.find_entities(of_pipeline text, prefix text, key text, bound integer) RETURNS refcursor
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    listed refcursor;
BEGIN
    OPEN listed FOR
        SELECT w.id, ARRAY[w.pipeline, w.current_status], jsonb_build_array(w.entity_id, w.pipeline)::text
        FROM outbox.pipelines AS p
        CROSS JOIN LATERAL (
            SELECT w.id, w.pipeline, w.current_status, w.entity_id FROM outbox.workflow_states AS w
            WHERE w.pipeline = p.pipeline AND w.entity_id ^@ prefix
              AND (key IS NULL OR w.entity_id >= key::jsonb ->> 0 AND (w.entity_id, w.pipeline) > (key::jsonb ->> 0, key::jsonb ->> 1))
            ORDER BY w.entity_id LIMIT bound) AS w
        WHERE of_pipeline IS NULL OR p.pipeline = of_pipeline
        ORDER BY w.entity_id, w.pipeline LIMIT bound;
    RETURN listed;
END
$$;
COMMENT ON FUNCTION outbox.find_entities(text, text, text, integer) IS 'Internal: workflows whose entity has a prefix, by entity.';

-- Way q: the oldest question first.
CREATE OR REPLACE FUNCTION outbox.find_questions(of_pipeline text, assigned_to text, key text, bound integer) RETURNS refcursor
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    listed refcursor;
BEGIN
    -- A workflow stands where its first question does. Not an anti-join, which would read all of them first.
    OPEN listed FOR
        SELECT a.workflow_id, ARRAY[a.pipeline, a.status], a.id::text FROM outbox.approvals AS a
        WHERE a.ended_at IS NULL
          AND (assigned_to IS NULL OR a.assignee = assigned_to)
          AND (of_pipeline IS NULL OR assigned_to IS NOT NULL OR a.pipeline = of_pipeline)
          AND (key IS NULL OR a.id > key::uuid)
          AND (SELECT b.id FROM outbox.approvals AS b
               WHERE b.workflow_id = a.workflow_id AND b.ended_at IS NULL AND b.id < a.id
                 AND (assigned_to IS NULL OR b.assignee = assigned_to) LIMIT 1) IS NULL
        ORDER BY a.id LIMIT bound;
    RETURN listed;
END
$$;
COMMENT ON FUNCTION outbox.find_questions(text, text, text, integer) IS 'Internal: workflows that ask a person, the oldest question first.';

-- Way d: the latest death first.
CREATE OR REPLACE FUNCTION outbox.find_dead(of_pipeline text, in_status text, of_kind text, key text, bound integer) RETURNS refcursor
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    listed refcursor;
    passed bigint := coalesce(key::bigint, 9223372036854775807);
BEGIN
    OPEN listed FOR
        SELECT d.workflow_id, ARRAY[d.pipeline, d.status], d.place::text
        FROM (
            SELECT d.* FROM (SELECT DISTINCT e.pipeline, e.status FROM outbox.errors AS e) AS e
            CROSS JOIN LATERAL (
                SELECT d.workflow_id, d.pipeline, d.status, d.place FROM outbox.dead_jobs AS d
                WHERE d.pipeline = e.pipeline AND d.status = e.status AND d.place < passed
                ORDER BY d.place DESC LIMIT bound
            ) AS d
            WHERE of_kind IS NULL AND (of_pipeline IS NULL OR e.pipeline = of_pipeline) AND (in_status IS NULL OR e.status = in_status)
            UNION ALL
            SELECT d.* FROM (SELECT DISTINCT e.pipeline FROM outbox.errors AS e WHERE e.kind = of_kind) AS e
            CROSS JOIN LATERAL (
                SELECT d.workflow_id, d.pipeline, d.status, d.place FROM outbox.dead_jobs AS d
                WHERE d.pipeline = e.pipeline AND d.kind = of_kind AND d.place < passed
                ORDER BY d.place DESC LIMIT bound
            ) AS d
            WHERE of_kind IS NOT NULL AND (of_pipeline IS NULL OR e.pipeline = of_pipeline)
        ) AS d
        ORDER BY d.place DESC LIMIT bound;
    RETURN listed;
END
$$;
COMMENT ON FUNCTION outbox.find_dead(text, text, text, text, integer) IS 'Internal: workflows with a dead job, the latest first.';

-- Way p: by place. Each status has its part of each index, in this order, so a page reads no more than a page of each.
CREATE OR REPLACE FUNCTION outbox.find_places(of_pipeline text, in_status text, wait text, key text, bound integer) RETURNS refcursor
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    listed refcursor;
    passed bigint := coalesce(key::bigint, 0);
BEGIN
    OPEN listed FOR
        SELECT c.workflow_id, ARRAY[c.pipeline, c.status], c.place::text
        FROM outbox.routes AS r
        CROSS JOIN LATERAL (
            (SELECT s.workflow_id, s.pipeline, s.status, s.place FROM outbox.resting AS s
             WHERE (wait IS NULL OR wait IN ('signal', 'children', 'deadline', 'change'))
               AND s.pipeline = r.pipeline AND s.status = r.status AND s.place > passed
             ORDER BY s.place LIMIT bound)
            UNION ALL
            (SELECT d.workflow_id, d.pipeline, d.status, d.place FROM outbox.dead_jobs AS d
             WHERE wait IS NULL AND d.pipeline = r.pipeline AND d.status = r.status AND d.place > passed
             ORDER BY d.place LIMIT bound)
            UNION ALL
            (SELECT j.workflow_id, j.pipeline, j.status, j.id FROM outbox.jobs AS j
             WHERE (wait IS NULL OR wait = 'timer')
               AND j.pipeline = r.pipeline AND j.status = r.status AND j.owner IS NULL AND NOT j.due AND j.stage IS NOT NULL
               AND j.id > passed
             ORDER BY j.id LIMIT bound)
            UNION ALL
            (SELECT j.workflow_id, j.pipeline, j.status, j.id FROM outbox.jobs AS j
             WHERE (wait IS NULL OR wait = 'worker')
               AND j.pipeline = r.pipeline AND j.status = r.status AND j.owner IS NOT NULL AND j.id > passed
             ORDER BY j.id LIMIT bound)
            UNION ALL
            (SELECT j.workflow_id, j.pipeline, j.status, j.id FROM outbox.jobs AS j
             WHERE wait IS NULL AND j.pipeline = r.pipeline AND j.status = r.status AND j.due IS NULL AND j.id > passed
             ORDER BY j.id LIMIT bound)
            -- In the line of a stage are also those in its in-progress status that wait for another attempt. They are
            -- told apart below, for there may be few of one among many of the other.
            UNION ALL
            (SELECT j.workflow_id, j.pipeline, j.status, j.id FROM outbox.jobs AS j
             WHERE (wait IS NULL OR wait IN ('worker', 'timer'))
               AND j.pipeline = r.pipeline AND j.stage = r.stage AND NOT j.careful AND j.owner IS NULL AND j.due AND j.id > passed
             ORDER BY j.id LIMIT bound)
            UNION ALL
            (SELECT j.workflow_id, j.pipeline, j.status, j.id FROM outbox.jobs AS j
             WHERE (wait IS NULL OR wait IN ('worker', 'timer'))
               AND j.pipeline = r.pipeline AND j.stage = r.stage AND j.careful AND j.owner IS NULL AND j.due AND j.id > passed
             ORDER BY j.id LIMIT bound)
        ) AS c
        WHERE NOT r.final AND (of_pipeline IS NULL OR r.pipeline = of_pipeline)
          AND (r.status = in_status OR in_status IS NULL AND NOT r.running)
        ORDER BY c.place LIMIT bound;
    RETURN listed;
END
$$;
COMMENT ON FUNCTION outbox.find_places(text, text, text, text, integer) IS 'Internal: workflows that have not ended, the one first that has waited longest.';

-- Way i: the newest first.
CREATE OR REPLACE FUNCTION outbox.find_newest(key text, bound integer) RETURNS refcursor
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    listed refcursor;
BEGIN
    OPEN listed FOR
        SELECT w.id, ARRAY[w.pipeline, w.current_status], w.id::text FROM outbox.workflow_states AS w
        WHERE key IS NULL OR w.id < key::uuid ORDER BY w.id DESC LIMIT bound;
    RETURN listed;
END
$$;
COMMENT ON FUNCTION outbox.find_newest(text, integer) IS 'Internal: workflows, the newest first.';

-- The list itself: it takes candidates in their order, and returns those that fit.
CREATE OR REPLACE FUNCTION outbox.find(
    of_pipeline text DEFAULT NULL, in_status text DEFAULT NULL, entity_prefix text DEFAULT NULL, older_than interval DEFAULT NULL,
    assigned_to text DEFAULT NULL, waiting_for text DEFAULT NULL, only_dead boolean DEFAULT false, of_kind text DEFAULT NULL,
    after text DEFAULT NULL, most integer DEFAULT 100
) RETURNS TABLE (
    id uuid, pipeline text, entity_id text, current_status text, metadata jsonb, version bigint, created_at timestamptz,
    updated_at timestamptz, state text, since timestamptz, stage text, attempt integer, error text, kind text, waits_for text,
    assignee text, until timestamptz, cursor text
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    most    integer := find.most;
    key     text := substr(find.after, 3);       -- where the page before has ended, and then where this one does
    wait    text := split_part(find.waiting_for, ' ', 1);
    dead    boolean := coalesce(find.only_dead, false) OR find.of_kind IS NOT NULL;
    way     text;
    exact   boolean;    -- the index leads to what fits, and to nothing else
    deep    boolean;    -- more must be read of a row to know whether it fits
    want    integer;    -- how many rows to take
    bound   integer;    -- how many rows to look at
    seen    integer := 0;
    ids     uuid[] := '{}';
    keys    text[] := '{}';
    shown   bigint;
    listed  refcursor;
    next_id uuid;
    next_in text[];     -- its pipeline and status
BEGIN
    IF (most BETWEEN 1 AND 10001) IS NOT TRUE THEN
        RAISE EXCEPTION 'a page of % workflows: it may have from 1 to 10000', most USING ERRCODE = 'invalid_parameter_value';
    END IF;
    way := outbox.find_way(find.of_pipeline, find.in_status, find.entity_prefix, find.older_than, find.assigned_to,
                           find.waiting_for, dead, find.after);
    deep := find.older_than IS NOT NULL OR wait IS NOT NULL AND (way, wait) <> ('q', 'approval')
         OR way <> 'q' AND find.assigned_to IS NOT NULL OR way <> 'd' AND dead;
    exact := NOT deep AND CASE way
        WHEN 'e' THEN find.in_status IS NULL
        WHEN 'q' THEN find.in_status IS NULL AND num_nonnulls(find.assigned_to, find.of_pipeline) < 2
        WHEN 'd' THEN find.in_status IS NULL OR find.of_kind IS NULL
        WHEN 'p' THEN NOT EXISTS (SELECT FROM outbox.routes AS r WHERE r.running AND r.status = find.in_status)
        ELSE find.of_pipeline IS NULL AND find.in_status IS NULL END;
    bound := CASE WHEN exact THEN most WHEN way = 'i' AND NOT deep THEN greatest(10000, most) ELSE greatest(2000, most) END;
    want := CASE WHEN deep THEN bound ELSE most END;
    -- 1. What comes next in the list.
    listed := CASE way
        WHEN 'e' THEN outbox.find_entities(find.of_pipeline, find.entity_prefix, key, bound)
        WHEN 'q' THEN outbox.find_questions(find.of_pipeline, find.assigned_to, key, bound)
        WHEN 'd' THEN outbox.find_dead(find.of_pipeline, find.in_status, find.of_kind, key, bound)
        WHEN 'p' THEN outbox.find_places(find.of_pipeline, find.in_status, wait, key, bound)
        ELSE outbox.find_newest(key, bound) END;
    LOOP
        EXIT WHEN seen >= bound OR cardinality(ids) >= want;
        FETCH listed INTO next_id, next_in, key;
        EXIT WHEN NOT FOUND;
        seen := seen + 1;
        IF next_in = ARRAY[coalesce(find.of_pipeline, next_in[1]), coalesce(find.in_status, next_in[2])] THEN
            ids := ids || next_id;
            keys := keys || key;
        END IF;
    END LOOP;
    CLOSE listed;

    -- 2. The whole of it, of those that fit.
    RETURN QUERY
        SELECT w.id, w.pipeline, w.entity_id, w.current_status, w.metadata, w.version, w.created_at, w.updated_at, w.state,
               w.since, w.stage, w.attempt, w.error, w.kind, w.waits_for, w.assignee, w.until, way || ':' || o.key
        FROM unnest(ids, keys) WITH ORDINALITY AS o (id, key, n)
        JOIN outbox.workflows AS w ON w.id = o.id
        WHERE (find.older_than IS NULL OR w.since < now() - find.older_than AND (w.state <> 'finished' OR find.in_status IS NOT NULL))
          AND (wait IS NULL OR way = 'q' AND wait = 'approval' OR w.waits_for = find.waiting_for
               OR wait = 'signal' AND find.waiting_for = wait AND w.waits_for LIKE 'signal %')
          AND (way = 'q' OR find.assigned_to IS NULL OR EXISTS (
               SELECT FROM outbox.approvals AS a
               WHERE a.workflow_id = w.id AND a.ended_at IS NULL AND a.assignee = find.assigned_to))
          AND (way = 'd' OR NOT dead OR w.state = 'dead')
          AND (find.of_kind IS NULL OR w.kind = find.of_kind)
        ORDER BY o.n LIMIT most;
    GET DIAGNOSTICS shown = ROW_COUNT;
    -- It may go on, unless it has come to those that are too young.
    IF shown < most AND seen >= bound AND (way <> 'p' OR find.older_than IS NULL OR EXISTS (
        SELECT FROM outbox.workflows AS w WHERE w.id = next_id AND w.since < now() - find.older_than)) THEN
        cursor := way || ':' || key;
        RETURN NEXT;
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.find(text, text, text, interval, text, text, boolean, text, text, integer) IS
    'Lists workflows, page by page. A row that has nothing but a cursor says that the list has looked at its bound and can go on.';
