-- Why a job does not run, or has not ended: parts of outbox.why, in why.sql.

-- Its job runs, or has been put off.
CREATE OR REPLACE FUNCTION outbox.why_job(workflow outbox.workflow_states, job outbox.jobs)
RETURNS TABLE (cause text, sentence text, remedy text, details jsonb)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    worker  outbox.workers;
    workers boolean := EXISTS (SELECT FROM outbox.workers AS k WHERE k.beat_at + k.lease >= now());
    most    integer := (SELECT s.max_attempts FROM outbox.stages AS s WHERE s.pipeline = job.pipeline AND s.stage = job.stage);
    facts   jsonb := jsonb_build_object('stage', job.stage, 'attempt', job.attempt, 'error', job.error, 'released', job.released,
                                        'run_at', job.run_at, 'owner', job.owner, 'claimed_at', job.claimed_at);
BEGIN
    IF job.owner IS NOT NULL THEN
        SELECT k.* INTO worker FROM outbox.workers AS k WHERE k.id = job.owner;
        IF worker.beat_at + worker.lease >= now() THEN
            RETURN QUERY SELECT 'running', format('Stage %s has been running since %s on worker %s (%s%s), attempt %s%s.', job.stage,
                outbox.why_time(job.claimed_at), job.owner, worker.name, ', release ' || worker.release, job.attempt, coalesce(': ' || job.progress, '')),
                'wait for its end or its timeout', facts;
        ELSE
            RETURN QUERY SELECT 'worker lost', format('Worker %s, which runs stage %s since %s, is gone.', job.owner, job.stage,
                outbox.why_time(job.claimed_at)),
                CASE WHEN workers THEN 'wait: another worker frees the job in a moment'
                     ELSE format('start a worker: outbox worker --app module:object --stage %s', outbox.why_word(job.stage)) END, facts;
        END IF;
    ELSIF job.due OR job.run_at <= now() THEN
        RETURN;
    ELSIF job.released > 0 THEN
        RETURN QUERY SELECT 'put back', format('Its job of stage %s was put back %s, and is tried again at %s: %s', job.stage,
            CASE job.released WHEN 1 THEN 'once' ELSE job.released || ' times' END, outbox.why_time(job.run_at),
            coalesce(job.error, 'no reason is known')), 'see to the reason: after more times the attempt counts as failed', facts;
    ELSIF job.attempt > 0 THEN
        RETURN QUERY SELECT 'retry', format('Attempt %s of %s of stage %s failed, and the next one comes at %s: %s', job.attempt,
            coalesce(most::text, '?'), job.stage, outbox.why_time(job.run_at), coalesce(job.error, 'it asked for that')),
            'see to the error, or wait', facts;
    ELSE
        RETURN QUERY SELECT 'time', format('It waits for its time: stage %s runs at %s.', job.stage, outbox.why_time(job.run_at)),
            'wait until then', facts;
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.why_job(outbox.workflow_states, outbox.jobs) IS 'Internal: why a job that runs, or is put off, has not ended.';

-- Its job is ready, and no worker takes it: what keeps workers from it, or which jobs are before it.
CREATE OR REPLACE FUNCTION outbox.why_ready(workflow outbox.workflow_states, job outbox.jobs)
RETURNS TABLE (cause text, sentence text, remedy text, details jsonb)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    queue  text := job.pipeline || '.' || job.stage;
    paused outbox.pauses;
    ahead  integer;
    rate   float8;
    facts  jsonb := jsonb_build_object('stage', job.stage, 'partition', job.partition);
BEGIN
    SELECT p.* INTO paused FROM outbox.pauses AS p WHERE p.pipeline = job.pipeline AND p.stage = job.stage;
    IF FOUND THEN
        RETURN QUERY SELECT 'paused', format('Stage %s is paused by %s, since %s%s', job.stage, paused.paused_by,
            outbox.why_time(paused.paused_at), coalesce(': ' || paused.reason, '.')), format('outbox resume %s', outbox.why_word(queue)),
            facts || jsonb_build_object('by', paused.paused_by, 'since', paused.paused_at, 'reason', paused.reason);
        RETURN;
    ELSIF NOT EXISTS (SELECT FROM outbox.workers AS k WHERE queue = ANY (k.stages) AND k.beat_at + k.lease >= now()) THEN
        RETURN QUERY SELECT 'no worker', format('No worker serves stage %s.', job.stage),
            format('outbox worker --app module:object --stage %s', outbox.why_word(job.stage)), facts;
        RETURN;
    ELSIF job.released > 0 THEN
        RETURN QUERY SELECT 'put back', format('Its job of stage %s was put back %s: %s', job.stage,
            CASE job.released WHEN 1 THEN 'once' ELSE job.released || ' times' END, coalesce(job.error, 'no reason is known')),
            'see to the reason: after more times the attempt counts as failed', facts || jsonb_build_object('released', job.released);
        RETURN;
    END IF;
    RETURN QUERY SELECT 'limit', format('The limit of stage %s holds it: %s.', job.stage, l.limit_), format(
        'wait, or raise the limit: UPDATE outbox.limits SET concurrency = N WHERE pipeline = %L AND stage = %L', job.pipeline, job.stage), facts
    FROM outbox.why_limited(job) AS l (limit_) WHERE l.limit_ IS NOT NULL;
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT count(*) INTO ahead FROM (
        SELECT FROM outbox.jobs AS j
        WHERE j.pipeline = job.pipeline AND j.stage = job.stage AND j.careful = job.careful AND j.owner IS NULL AND j.due AND j.id < job.id
          AND (job.partition IS NULL OR j.partition = job.partition AND j.priority >= job.priority)
        LIMIT 1000) AS j;
    -- Of ten minutes; the flow of the present one is not whole yet.
    SELECT sum(f.went) / 10.0 INTO rate FROM outbox.flow AS f
    WHERE f.pipeline = job.pipeline AND f.status = job.status AND f.minute >= date_trunc('minute', now()) - interval '10 minutes';
    RETURN QUERY SELECT CASE ahead WHEN 0 THEN 'next' ELSE 'behind' END,
        CASE ahead WHEN 0 THEN format('It is next for stage %s, when a worker is free.', job.stage)
             ELSE format('It is behind %s for stage %s; %s.', CASE WHEN ahead >= 1000 THEN '1,000 others or more'
                      WHEN ahead = 1 THEN '1 other' ELSE ahead || ' others' END, job.stage,
                  CASE WHEN coalesce(rate, 0) = 0 THEN 'none has left it in the last ten minutes'
                       ELSE format('%s a minute have left it, so this takes %s', round(rate::numeric, 1),
                                   CASE WHEN ahead >= 1000 THEN 'at least ' ELSE 'about ' END || ceil(ahead / rate) || ' min') END) END,
        CASE WHEN coalesce(rate, 0) = 0 AND ahead > 0 THEN 'look at the log of `outbox worker`'
             ELSE format('wait, or start more workers: outbox worker --app module:object --stage %s', outbox.why_word(job.stage)) END,
        facts || jsonb_build_object('ahead', ahead, 'a_minute', rate);
END
$$;
COMMENT ON FUNCTION outbox.why_ready(outbox.workflow_states, outbox.jobs) IS 'Internal: why no worker has taken a job that is ready.';

-- The limit that holds a job, in words; null if none does.
CREATE OR REPLACE FUNCTION outbox.why_limited(job outbox.jobs) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    l       outbox.limits;
    next_at timestamptz;
BEGIN
    SELECT s.* INTO l FROM outbox.limits AS s WHERE s.pipeline = job.pipeline AND s.stage = job.stage;
    IF l.concurrency <= (
        SELECT count(*) FROM (SELECT FROM outbox.jobs AS j WHERE j.pipeline = job.pipeline AND j.stage = job.stage
                              AND j.owner IS NOT NULL AND j.partition IS NOT NULL LIMIT l.concurrency) AS j) THEN
        RETURN format('%s of %s run', l.concurrency, l.concurrency);
    ELSIF l.partition_concurrency <= (
        SELECT count(*) FROM (SELECT FROM outbox.jobs AS j WHERE j.pipeline = job.pipeline AND j.stage = job.stage
                              AND j.partition = job.partition AND j.owner IS NOT NULL AND j.partition IS NOT NULL
                              LIMIT l.partition_concurrency) AS j) THEN
        RETURN format('%s of %s of partition "%s" run', l.partition_concurrency, l.partition_concurrency, job.partition);
    ELSIF l.rate IS NOT NULL AND l.next_at > now() THEN
        RETURN format('the next of %s a second may start at %s', l.rate, outbox.why_time(l.next_at));
    END IF;
    SELECT r.next_at INTO next_at FROM outbox.partition_rates AS r
    WHERE r.pipeline = job.pipeline AND r.stage = job.stage AND r.partition = job.partition AND r.next_at > now();
    RETURN format('the next of partition "%s", %s a second, may start at %s', job.partition, l.partition_rate, outbox.why_time(next_at))
        WHERE next_at IS NOT NULL AND l.partition_rate IS NOT NULL;
END
$$;
COMMENT ON FUNCTION outbox.why_limited(outbox.jobs) IS 'Internal: the limit that holds a job, in words.';
