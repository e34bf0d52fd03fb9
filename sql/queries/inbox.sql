-- Step 6: first time, or duplicate: in the caller's own transaction, so that the record and the effect are one commit.

-- name: inbox_accept
-- Records an id for a consumer. Returns whether it is new, then whether it was refused as too old or as of the future,
-- with the limits; a refused one is not recorded. Waits for whoever records the same id just now. The trigger on the
-- inbox refuses, too, but by an error that would end the caller's transaction.
-- Reads inbox_floor. Writes inbox. Locks nothing but the new row. Uses the key of the child that the id belongs to.
WITH given AS MATERIALIZED (
    SELECT outbox.inbox_oldest() AS oldest, clock_timestamp() + interval '1 day' AS newest,
           outbox.uuid7_time(%(message_id)s::uuid) AS sent_at
), taken AS (
    INSERT INTO outbox.inbox (consumer, message_id)
    SELECT %(consumer)s, %(message_id)s::uuid FROM given AS g WHERE g.sent_at >= g.oldest AND g.sent_at <= g.newest
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT EXISTS (SELECT FROM taken), g.sent_at < g.oldest, g.sent_at > g.newest,
       extract(epoch FROM g.oldest)::float8, extract(epoch FROM g.newest)::float8
FROM given AS g;

-- name: inbox_forget
-- Empties the children of the inbox that are older than `days`. Returns which were, and which could not be had.
-- Writes inbox_floor, inbox, delivery_attempts. Locks one old child after the other, waiting for each 100 ms at most.
SELECT f.child, f.emptied FROM outbox.inbox_forget(%(days)s::float8) AS f;
