-- Step 6: tells whether a message comes for the first time. It runs in the caller's own transaction, so that the record
-- and the effect are one commit.

-- name: inbox_accept
-- Records an id for a consumer. Returns whether it is new, then whether it was refused as too old or as from the
-- future, with the limits; a refused id is not recorded. It waits for a transaction that records the same id. The
-- trigger on the inbox refuses, too, but with an error that would end the caller's transaction. The statement uses the
-- key of the child to which the id belongs.
-- Reads inbox_floor. Writes inbox.
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
-- Empties the children of the inbox that are older than `days`. Returns which were emptied, and which could not be
-- locked. See the function in sql/functions/inbox.sql.
-- Writes inbox_floor, inbox, delivery_attempts. Locks one old child after the other, waiting for each 100 ms at most.
SELECT f.child, f.emptied FROM outbox.inbox_forget(%(days)s::float8) AS f;
