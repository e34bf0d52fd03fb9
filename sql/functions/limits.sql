-- Flow control: how many jobs of a stage run at once and how many start in a second, over all workers, in total or for each
-- partition; and which of them come first. A stage without limits has jobs without a partition, and pays nothing.
--
-- A rate is kept by the generic cell rate algorithm (GCRA, ITU-T I.371, in its form of virtual scheduling), used as a
-- shaper: `next_at` is the theoretical arrival time, each job moves it on by an increment, and a job gets the time before as
-- its start time instead of being refused. A claim reserves the start times of the next `ahead` seconds at most.
--
-- Partitions are served by round-robin with a cursor, `served`: each claim goes on after the partition that was served last.
--
-- A claim asks four questions: 1 how much quota is left, 2 which partitions are next in turn, 3 which of their jobs, 4 when
-- each may start. jobs_claim_limited puts them together; limit_round repeats 2 and 3.

-- Seconds between two start times. Attempts may start up to `slack` seconds late; the increment is so much larger than
-- 1 / rate that they keep to the rate in every window of a second and more: n + 1 start times span a second and `slack`.
CREATE OR REPLACE FUNCTION outbox.limit_increment(rate float8, slack float8) RETURNS float8
LANGUAGE sql IMMUTABLE
RETURN 1 / rate + slack / greatest(rate, 1);
COMMENT ON FUNCTION outbox.limit_increment(float8, float8) IS 'Internal: seconds between two start times of a rate.';

-- 1. How much quota a limited stage has left, `quota` jobs; null where there is nothing to claim. Locks the stage's row, so
-- that claims follow one another and each counts what those before it have taken. `earliest` is when an attempt can start,
-- `start_at` when it may by the stage's rate. `full`: concurrency leaves less than was asked for.
CREATE OR REPLACE FUNCTION outbox.limit_quota(
    worker integer, of_pipeline text, of_stage text, most integer, lead float8, ahead float8, slack float8,
    OUT l outbox.limits, OUT quota integer, OUT "full" boolean, OUT increment float8, OUT partition_increment float8,
    OUT earliest timestamptz, OUT start_at timestamptz
)
LANGUAGE plpgsql
AS $$
BEGIN
    SELECT s.* INTO l FROM outbox.limits AS s WHERE s.pipeline = of_pipeline AND s.stage = of_stage FOR NO KEY UPDATE;
    IF NOT FOUND OR EXISTS (SELECT FROM outbox.pauses AS p WHERE p.pipeline = of_pipeline AND p.stage = of_stage)
        OR NOT EXISTS (SELECT FROM outbox.workers AS w WHERE w.id = worker)
        OR NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.pipeline = of_pipeline AND j.stage = of_stage
                       AND CASE WHEN j.owner IS NULL AND j.due THEN j.partition IS NOT NULL END) THEN
        RETURN;
    END IF;
    earliest := clock_timestamp() + make_interval(secs => lead);
    quota := most;
    IF l.concurrency IS NOT NULL THEN
        SELECT least(most, l.concurrency - count(*)) INTO quota
        FROM (SELECT FROM outbox.jobs AS j WHERE j.pipeline = of_pipeline AND j.stage = of_stage
              AND j.owner IS NOT NULL AND j.partition IS NOT NULL LIMIT l.concurrency) AS j;
    END IF;
    "full" := quota < most;
    partition_increment := outbox.limit_increment(l.partition_rate, slack);
    IF l.rate IS NOT NULL THEN
        increment := outbox.limit_increment(l.rate, slack);
        -- A clock that was set back, or a rate that was raised, holds up one attempt and no more.
        start_at := greatest(earliest, least(l.next_at, earliest + make_interval(secs => ahead + increment)));
        quota := least(quota, floor((ahead - extract(epoch FROM start_at - earliest)) / increment) + 1);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.limit_quota(integer, text, text, integer, float8, float8, float8) IS
    'Internal: how many jobs of a limited stage may be claimed now. Locks the stage''s row.';

-- 2. Which partitions come next in turn: up to `most` that have ready jobs, from `since` on and up to `until` (null: to the
-- last). It goes from one partition to the next by the index, whatever number of jobs each has.
CREATE OR REPLACE FUNCTION outbox.limit_partitions(of_pipeline text, of_stage text, since text, until text, most integer)
RETURNS text[]
LANGUAGE plpgsql
AS $$
BEGIN
    RETURN (
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
            WHERE walk.n < most
        )
        SELECT coalesce(array_agg(walk.key ORDER BY walk.n), '{}') FROM walk WHERE until IS NULL OR walk.key <= until
    );
END
$$;
COMMENT ON FUNCTION outbox.limit_partitions(text, text, text, text, integer) IS
    'Internal: the next partitions in turn that have ready jobs.';

-- How much quota each partition has left: `partitions` keeps those that have some, `quotas` says how many jobs. `delays` are
-- the seconds until a partition's next start time, `retry_in` those until one without quota may have some.
CREATE OR REPLACE FUNCTION outbox.limit_partition_quotas(
    l outbox.limits, keys text[], quota integer, earliest timestamptz, ahead float8, increment float8, partition_increment float8,
    OUT partitions text[], OUT quotas integer[], OUT delays jsonb, OUT retry_in float8
)
LANGUAGE plpgsql
AS $$
DECLARE
    far text[];  -- partitions whose next start time is further away than it can be
BEGIN
    SELECT coalesce(array_agg(k.key ORDER BY k.n) FILTER (WHERE k.size > 0), '{}'),
           coalesce(array_agg(k.size ORDER BY k.n) FILTER (WHERE k.size > 0), '{}'),
           coalesce(jsonb_object_agg(k.key, k.delay), '{}'),
           min(CASE WHEN k.delay > 0 THEN greatest(k.delay - ahead / 2, 0.005) ELSE 0.1 END) FILTER (WHERE k.size <= 0),
           array_agg(k.key) FILTER (WHERE k.delay >= ahead + partition_increment)
    INTO partitions, quotas, delays, retry_in, far
    FROM (SELECT k.key, k.n, r.delay,
                 least(quota, l.partition_concurrency - (
                           SELECT count(*) FROM (
                               SELECT FROM outbox.jobs AS j
                               WHERE j.pipeline = l.pipeline AND j.stage = l.stage AND j.partition = k.key
                                 AND j.owner IS NOT NULL AND j.partition IS NOT NULL LIMIT l.partition_concurrency) AS j),
                       CASE WHEN partition_increment IS NULL THEN quota
                            WHEN increment IS NULL THEN floor((ahead - r.delay) / partition_increment) + 1
                            WHEN r.delay > 0 THEN 0 ELSE 1 END)::integer AS size
          FROM unnest(keys) WITH ORDINALITY AS k (key, n)
          CROSS JOIN LATERAL (
              SELECT greatest(0, least(ahead + partition_increment, coalesce(extract(epoch FROM (
                  SELECT r.next_at FROM outbox.partition_rates AS r
                  WHERE r.pipeline = l.pipeline AND r.stage = l.stage AND r.partition = k.key) - earliest), 0)))::float8 AS delay
          ) AS r) AS k;
    IF far IS NOT NULL THEN
        UPDATE outbox.partition_rates AS r SET next_at = earliest + make_interval(secs => ahead + partition_increment)
        WHERE r.pipeline = l.pipeline AND r.stage = l.stage AND r.partition = ANY (far);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.limit_partition_quotas(outbox.limits, text[], integer, timestamptz, float8, float8, float8) IS
    'Internal: how many jobs of each of these partitions may be claimed now.';

-- 3. Takes up to `quota` ready jobs of these partitions, and of each up to its quota, for a worker. The partitions have equal
-- shares, the first of them one job more if need be, and what one leaves the others have. Careful jobs are left, but for
-- `careful`.
CREATE OR REPLACE FUNCTION outbox.limit_take(
    worker integer, of_pipeline text, of_stage text, partitions text[], quotas integer[], quota integer, careful uuid
) RETURNS uuid[]
LANGUAGE plpgsql
AS $$
DECLARE
    taken  uuid[] := '{}';
    share  integer;
    extra  integer;
    shares integer[];
BEGIN
    WHILE quota > 0 AND cardinality(partitions) > 0 LOOP
        share := quota / cardinality(partitions);
        extra := quota % cardinality(partitions);
        shares := array_fill(share + 1, ARRAY[extra]) || array_fill(share, ARRAY[cardinality(partitions) - extra]);
        WITH picked AS MATERIALIZED (
            SELECT j.workflow_id, k.n
            FROM unnest(partitions, quotas, shares) WITH ORDINALITY AS k (key, size, share, n)
            CROSS JOIN LATERAL (
                SELECT j.workflow_id FROM outbox.jobs AS j
                WHERE j.pipeline = of_pipeline AND j.stage = of_stage AND j.partition = k.key
                  AND CASE WHEN j.owner IS NULL AND j.due THEN j.partition IS NOT NULL END
                  AND (NOT j.careful OR j.workflow_id = limit_take.careful)
                  -- Who could not read its data leaves it to others for a while.
                  AND (j.released_by IS DISTINCT FROM worker OR j.run_at < now() - interval '30 seconds')
                ORDER BY j.priority DESC, j.id
                LIMIT least(k.share, k.size)
                FOR NO KEY UPDATE SKIP LOCKED
            ) AS j
        ), claimed AS (
            UPDATE outbox.jobs AS j SET owner = worker, attempt = j.attempt + 1, claimed_at = now()
            WHERE j.workflow_id = ANY (ARRAY(SELECT p.workflow_id FROM picked AS p))
        )
        SELECT taken || coalesce((SELECT array_agg(p.workflow_id) FROM picked AS p), '{}'),
               quota - (SELECT count(*) FROM picked),
               coalesce(array_agg(k.key ORDER BY k.n) FILTER (WHERE coalesce(p.n, 0) = k.share AND k.size > k.share), '{}'),
               coalesce(array_agg(k.size - k.share ORDER BY k.n) FILTER (WHERE coalesce(p.n, 0) = k.share AND k.size > k.share),
                        '{}')
        INTO taken, quota, partitions, quotas
        FROM unnest(partitions, quotas, shares) WITH ORDINALITY AS k (key, size, share, n)
        LEFT JOIN (SELECT p.n AS key, count(*) AS n FROM picked AS p GROUP BY p.n) AS p ON p.key = k.n;
    END LOOP;
    RETURN taken;
END
$$;
COMMENT ON FUNCTION outbox.limit_take(integer, text, text, text[], integer[], integer, uuid) IS
    'Internal: takes ready jobs of these partitions for a worker.';

-- Goes round the partitions, in turn, and takes ready jobs of them for a worker until the quota is used up. Returns what it
-- has taken, what is left of the quota, the `delays` of the partitions, the `last` one (the new cursor), and the seconds
-- until a partition without quota may have some.
CREATE OR REPLACE FUNCTION outbox.limit_round(
    worker integer, l outbox.limits, most integer, one_careful boolean, earliest timestamptz, ahead float8, increment float8,
    partition_increment float8, INOUT quota integer, OUT taken uuid[], OUT delays jsonb, OUT last text, OUT retry_in float8
)
LANGUAGE plpgsql
AS $$
DECLARE
    keys    text[];                             -- partitions, in turn
    quotas  integer[];                          -- and how many jobs each may have
    since   text := l.served || E'\x01';        -- from here on (the next possible text) they are still to be looked at,
    around  boolean := false;                   -- up to the cursor, if the turn has been around,
    done    boolean;                            -- until none is left
    step    integer;                            -- how many are looked at together,
    looked  integer := 0;                       -- and how many have been looked at
    found   record;
    these   uuid[];
    suspect uuid;                               -- the careful job
BEGIN
    taken := '{}';
    delays := '{}';
    WHILE quota > 0 LOOP
        IF l.partitioned THEN
            -- Of many partitions each has up to eight jobs in its turn: a look costs more than a job.
            step := greatest(ceil(quota::float8 / CASE WHEN increment + partition_increment > 0 THEN 1
                                                       ELSE greatest(1, least(8, most / 25)) END), 25);
            keys := outbox.limit_partitions(l.pipeline, l.stage, since, CASE WHEN around THEN l.served END, step);
            IF cardinality(keys) < step AND NOT around THEN
                around := true;
                keys := keys || outbox.limit_partitions(l.pipeline, l.stage, '', l.served, step - cardinality(keys));
            END IF;
            done := around AND cardinality(keys) < step;
            looked := looked + cardinality(keys);
            last := coalesce(keys[cardinality(keys)], last);
            since := last || E'\x01';
        ELSE
            keys := ARRAY[''];
            done := true;
        END IF;

        IF partition_increment IS NULL AND l.partition_concurrency IS NULL THEN
            quotas := array_fill(quota, ARRAY[cardinality(keys)]);
        ELSE
            found := outbox.limit_partition_quotas(l, keys, quota, earliest, ahead, increment, partition_increment);
            keys := found.partitions;
            quotas := found.quotas;
            delays := delays || found.delays;
            retry_in := least(retry_in, found.retry_in);
        END IF;
        IF cardinality(keys) > quota THEN
            keys := keys[:quota];
            last := keys[quota];
        ELSIF done AND looked > 0 AND looked < step THEN
            -- All have their turn at once: the next one begins behind those that have a job more than the others.
            last := coalesce(keys[quota % greatest(cardinality(keys), 1)], last);
        END IF;

        IF one_careful AND suspect IS NULL THEN
            SELECT j.workflow_id INTO suspect FROM outbox.jobs AS j
            WHERE j.pipeline = l.pipeline AND j.stage = l.stage AND j.careful AND j.owner IS NULL AND j.due
              AND j.partition = ANY (keys)
            ORDER BY j.id LIMIT 1;
        END IF;
        these := outbox.limit_take(worker, l.pipeline, l.stage, keys, quotas, quota, suspect);
        taken := taken || these;
        quota := quota - cardinality(these);

        EXIT WHEN done;
        IF looked >= 4 * most + 100 THEN
            retry_in := 0;
            EXIT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION outbox.limit_round(integer, outbox.limits, integer, boolean, timestamptz, float8, float8, float8, integer) IS
    'Internal: takes ready jobs of the partitions in turn until the quota is used up.';

-- Claims up to `most` ready jobs of a limited stage for a worker, of one partition after the other, within its limits. A
-- start time lies at least `lead` seconds from now, and at most `ahead` seconds after that; see limit_increment for `slack`.
-- A careful job is taken with `one_careful` only, and only one.
--
-- The last row has no job. It says in `starts_at` in how many seconds there may be more to claim (null: nothing waits), and
-- when, by the server's clock, the question came and the answer went: a worker compares its own clock with that.
CREATE OR REPLACE FUNCTION outbox.jobs_claim_limited(
    worker integer, of_pipeline text, of_stage text, most integer, one_careful boolean, lead float8, ahead float8, slack float8
) RETURNS TABLE (pipeline text, stage text, id bigint, workflow_id text, entered bigint, attempt integer, careful boolean,
                 entity_id text, status text, version bigint, metadata text, starts_at float8, asked_at float8, answered_at float8)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    asked timestamptz := clock_timestamp();
    q     record;  -- what limit_quota says
    r     record;  -- what limit_round has done
BEGIN
    q := outbox.limit_quota(worker, of_pipeline, of_stage, most, lead, ahead, slack);
    IF q.quota IS NULL THEN
        RETURN;
    END IF;
    r := outbox.limit_round(worker, q.l, most, one_careful, q.earliest, ahead, q.increment, q.partition_increment, q.quota);

    IF cardinality(r.taken) > 0 THEN
        -- The time that it took to come here is not to be made up for.
        q.earliest := greatest(q.earliest, clock_timestamp() + make_interval(secs => lead));
        q.start_at := greatest(q.start_at, q.earliest);
        -- 4. When each may start, where there is a rate: of the stage from `start_at` on, or of its partition after the
        -- partition's delay.
        RETURN QUERY
        WITH job AS MATERIALIZED (
            SELECT j.id, j.workflow_id, j.entered, j.attempt, j.careful, j.partition, j.priority,
                   row_number() OVER (PARTITION BY j.partition ORDER BY j.priority DESC, j.id) - 1 AS nth
            FROM outbox.jobs AS j WHERE j.workflow_id = ANY (r.taken)
        ), started AS MATERIALIZED (
            SELECT job.*, CASE WHEN q.increment IS NOT NULL
                THEN q.start_at + make_interval(secs => q.increment * (
                    row_number() OVER (ORDER BY job.nth, job.priority DESC, job.id) - 1))
                WHEN q.partition_increment IS NOT NULL
                THEN q.earliest + make_interval(secs => (r.delays -> job.partition)::float8 + q.partition_increment * job.nth)
                END AS at
            FROM job
        ), noted AS (
            INSERT INTO outbox.partition_rates AS p (pipeline, stage, partition, next_at)
            SELECT of_pipeline, of_stage, s.partition, max(s.at) + make_interval(secs => q.partition_increment)
            FROM started AS s WHERE q.partition_increment IS NOT NULL GROUP BY s.partition
            ON CONFLICT ON CONSTRAINT partition_rates_pkey DO UPDATE SET next_at = excluded.next_at
        )
        SELECT of_pipeline, of_stage, s.id, s.workflow_id::text, s.entered, s.attempt, s.careful,
               w.entity_id, CASE WHEN w.pipeline = of_pipeline AND w.version >= s.entered THEN w.current_status ELSE '' END,
               w.version, w.metadata::text,
               CASE WHEN coalesce(q.increment, q.partition_increment) IS NOT NULL THEN extract(epoch FROM s.at)::float8 END,
               NULL::float8, NULL::float8
        FROM started AS s
        JOIN outbox.workflow_states AS w ON w.id = s.workflow_id
        ORDER BY s.at, s.nth, s.priority DESC, s.id;
        q.start_at := CASE WHEN q.increment IS NOT NULL
                           THEN q.start_at + make_interval(secs => q.increment * cardinality(r.taken)) END;
    END IF;
    IF cardinality(r.taken) > 0 OR r.last <> (q.l).served OR q.start_at < (q.l).next_at THEN
        UPDATE outbox.limits AS s SET next_at = coalesce(q.start_at, s.next_at), served = coalesce(r.last, s.served)
        WHERE s.pipeline = of_pipeline AND s.stage = of_stage;
    END IF;

    RETURN QUERY SELECT of_pipeline, of_stage, NULL::bigint, NULL::text, NULL::bigint, NULL::integer, NULL::boolean,
        NULL::text, NULL::text, NULL::bigint, NULL::text,
        CASE WHEN EXISTS (SELECT FROM outbox.jobs AS j WHERE j.pipeline = of_pipeline AND j.stage = of_stage
                          AND CASE WHEN j.owner IS NULL AND j.due THEN j.partition IS NOT NULL END)
             THEN greatest(extract(epoch FROM q.start_at - q.earliest)::float8 - ahead / 2, 0, CASE
                 WHEN r.quota > 0 THEN coalesce(r.retry_in, CASE WHEN q.partition_increment IS NULL THEN 1.0 ELSE ahead / 2 END)
                 WHEN q."full" THEN 1.0 END) END,
        extract(epoch FROM asked)::float8, extract(epoch FROM clock_timestamp())::float8;
END
$$;
COMMENT ON FUNCTION outbox.jobs_claim_limited(integer, text, text, integer, boolean, float8, float8, float8) IS
    'Internal: claims jobs of a limited stage for a worker.';

-- Takes back start times that were not used, as long as no later one was given: else a process that was too busy at a start
-- time would cost a slow rate a whole increment. `ids` and `start_times` are the jobs and when they were to start.
CREATE OR REPLACE FUNCTION outbox.start_times_return(of_pipeline text, of_stage text, ids uuid[], start_times float8[], slack float8)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    l                   outbox.limits;
    increment           float8;
    partition_increment float8;
    unused              record;
BEGIN
    SELECT s.* INTO l FROM outbox.limits AS s WHERE s.pipeline = of_pipeline AND s.stage = of_stage FOR NO KEY UPDATE;
    increment := outbox.limit_increment(l.rate, slack);
    partition_increment := outbox.limit_increment(l.partition_rate, slack);
    -- From one start time on they are the last ones if as many come back as lie between it and the next free one, to half a
    -- millisecond.
    UPDATE outbox.limits AS s SET next_at = last.at
    FROM (SELECT to_timestamp(min(m.at)) AS at
          FROM (SELECT m.at, count(*) OVER (ORDER BY m.at DESC) AS n FROM unnest(start_times) AS m (at)) AS m
          WHERE abs(extract(epoch FROM l.next_at)::float8 - m.at - increment * m.n) < least(increment / 4, 0.0005)) AS last
    WHERE s.pipeline = of_pipeline AND s.stage = of_stage AND last.at IS NOT NULL;

    -- One after the other: a join of two sides of unknown sizes would be done over for each row of the table.
    FOR unused IN
        SELECT m.partition, to_timestamp(min(m.at)) AS at
        FROM (SELECT j.partition, m.at, count(*) OVER (PARTITION BY j.partition ORDER BY m.at DESC) AS n
              FROM unnest(ids, start_times) AS m (id, at)
              CROSS JOIN LATERAL (SELECT j.partition FROM outbox.jobs AS j WHERE j.workflow_id = m.id OFFSET 0) AS j) AS m
        CROSS JOIN LATERAL (
            SELECT extract(epoch FROM r.next_at)::float8 AS next FROM outbox.partition_rates AS r
            WHERE r.pipeline = of_pipeline AND r.stage = of_stage AND r.partition = m.partition OFFSET 0) AS r
        WHERE abs(r.next - m.at - partition_increment * m.n) < least(partition_increment / 4, 0.0005)
        GROUP BY m.partition
    LOOP
        UPDATE outbox.partition_rates AS r SET next_at = unused.at
        WHERE r.pipeline = of_pipeline AND r.stage = of_stage AND r.partition = unused.partition;
    END LOOP;
END
$$;
COMMENT ON FUNCTION outbox.start_times_return(text, text, uuid[], float8[], float8) IS
    'Internal: takes back start times that were not used.';
REVOKE EXECUTE ON FUNCTION
    outbox.limit_quota(integer, text, text, integer, float8, float8, float8),
    outbox.limit_partitions(text, text, text, text, integer),
    outbox.limit_partition_quotas(outbox.limits, text[], integer, timestamptz, float8, float8, float8),
    outbox.limit_take(integer, text, text, text[], integer[], integer, uuid),
    outbox.limit_round(integer, outbox.limits, integer, boolean, timestamptz, float8, float8, float8, integer),
    outbox.jobs_claim_limited(integer, text, text, integer, boolean, float8, float8, float8),
    outbox.start_times_return(text, text, uuid[], float8[], float8) FROM PUBLIC;
