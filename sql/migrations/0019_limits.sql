-- Flow control: how many jobs of a stage are at work at once and how many begin a second, over all workers, in all or for
-- each partition; and which of them come first. A stage without any of it has jobs without a partition, and pays nothing.

-- `partition`: whose job it is, '' for all where the stage has no partitions; null: the stage is not limited.
-- `priority`: the higher the sooner, within the partition.
ALTER TABLE outbox.jobs ADD COLUMN partition text COLLATE "C", ADD COLUMN priority integer;
-- Its condition is written so that no other index can stand in for it: a claim that was planned when the table was empty
-- would take jobs_ready_for_claim, which costs the same then, and later sort all that waits.
CREATE INDEX jobs_ready_by_partition ON outbox.jobs (pipeline, stage, partition, priority DESC, id)
    WHERE CASE WHEN owner IS NULL AND due THEN partition IS NOT NULL END;
CREATE INDEX jobs_running_by_partition ON outbox.jobs (pipeline, stage, partition)
    WHERE owner IS NOT NULL AND partition IS NOT NULL;

-- Where in the data partition and priority are, as paths. `partition` is null where the stage is not limited, and empty
-- where it is and has no partitions.
ALTER TABLE outbox.routes ADD COLUMN partition text[], ADD COLUMN priority text[];

-- One row a stage that is limited. Who claims for it locks the row first, so that claims come one after the other and each
-- sees what those before it have taken: what is at work is counted, not remembered, and no crash makes it wrong.
-- Rates are a second. `next_at`: no attempt begins before; `served`: the partition that was served last.
CREATE TABLE outbox.limits (
    pipeline              text COLLATE "C" NOT NULL,
    stage                 text COLLATE "C" NOT NULL,
    concurrency           integer,
    rate                  float8,
    partition_concurrency integer,
    partition_rate        float8,
    partitioned           boolean NOT NULL,
    next_at               timestamptz NOT NULL DEFAULT '-infinity',
    served                text COLLATE "C" NOT NULL DEFAULT '',
    CONSTRAINT limits_pkey PRIMARY KEY (pipeline, stage),
    CONSTRAINT limits_let_something_begin CHECK (concurrency >= 1 AND partition_concurrency >= 1),
    CONSTRAINT limits_rates_in_range CHECK (rate > 0 AND rate <= 1e6 AND partition_rate > 0 AND partition_rate <= 1e6)
) WITH (fillfactor = 50);

-- When the next attempt of a partition may begin, where that is in the future; older rows mean nothing.
CREATE TABLE outbox.partition_rates (
    pipeline  text COLLATE "C" NOT NULL,
    stage     text COLLATE "C" NOT NULL,
    partition text COLLATE "C" NOT NULL,
    next_at   timestamptz NOT NULL,
    CONSTRAINT partition_rates_pkey PRIMARY KEY (pipeline, stage, partition)
) WITH (fillfactor = 70);

CREATE FUNCTION outbox.partition_of(metadata jsonb, path text[]) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN cardinality(path) > 0 THEN left(coalesce(metadata #>> path, ''), 200) ELSE '' END;

CREATE FUNCTION outbox.priority_of(metadata jsonb, path text[]) RETURNS integer
LANGUAGE sql IMMUTABLE
RETURN CASE jsonb_typeof(metadata #> path)
    WHEN 'number' THEN greatest(least((metadata #>> path)::numeric, 2147483647), -2147483648)::integer
    WHEN 'boolean' THEN (metadata #>> path)::boolean::integer
    ELSE 0 END;

-- Takes up to `most` ready jobs of a limited stage for a worker, of one partition after the other, within its limits.
--
-- Where there is a rate, each job has its moment, `starts_at`, of those that lie at most `ahead` seconds after `lead`
-- seconds from now. They are so far apart that attempts which begin up to `slack` seconds late keep to the rate in every
-- window of a second and more: n + 1 of them span a second and `slack`.
--
-- A job that may kill its worker is taken with `one_careful` only, and only one.
--
-- The last row has no job: it says, in `starts_at`, in how many seconds there may be more to take (null: nothing waits);
-- and when, by the server's clock, the question came and the answer went, from which a worker knows how its own clock stands.
CREATE FUNCTION outbox.jobs_claim_limited(worker integer, of_pipeline text, of_stage text, most integer, one_careful boolean,
                                          lead float8, ahead float8, slack float8)
RETURNS TABLE (pipeline text, stage text, id bigint, workflow_id text, entered bigint, attempt integer, careful boolean,
               entity_id text, status text, version bigint, metadata text, starts_at float8, asked_at float8, answered_at float8)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan
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
REVOKE EXECUTE ON FUNCTION outbox.jobs_claim_limited(integer, text, text, integer, boolean, float8, float8, float8) FROM PUBLIC;

-- Takes back moments that nobody has used, as long as no later one was given: else a process that was too busy at its moment
-- would cost a slow rate all of its gap. `ids` and `moments` are the jobs and when they were to begin.
CREATE FUNCTION outbox.moments_return(of_pipeline text, of_stage text, ids uuid[], moments float8[], slack float8) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
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
REVOKE EXECUTE ON FUNCTION outbox.moments_return(text, text, uuid[], float8[], float8) FROM PUBLIC;
