-- What runs by the clock. A row is locked while its function runs, in the transaction that moves `next_at` on: so each tick
-- has its effect once, by whichever worker. `error` and `retry_at` are of the tick at `next_at`, which has failed so often.
CREATE TABLE outbox.schedules (
    pipeline  text COLLATE "C" NOT NULL,
    schedule  text COLLATE "C" NOT NULL,
    cron      text NOT NULL,
    timezone  text NOT NULL,
    catch_up  boolean NOT NULL,
    next_at   timestamptz NOT NULL,
    last_at   timestamptz,
    ran_at    timestamptz,
    attempts  integer NOT NULL DEFAULT 0,
    retry_at  timestamptz,
    error     text,
    CONSTRAINT schedules_pkey PRIMARY KEY (pipeline, schedule)
) WITH (fillfactor = 50);
