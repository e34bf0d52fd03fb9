-- What a sequence or a counter gives is given twice after a failover to a server that lacks the last commits, while processes
-- still know it from before. So it names nothing alone that a process keeps in mind.

-- A worker's id is drawn at random. Rows that survive a failover keep theirs; one that is lost is not drawn by another.
ALTER TABLE outbox.workers ALTER COLUMN id DROP IDENTITY;
ALTER TABLE outbox.workers ALTER COLUMN id SET DEFAULT (1 + floor(random() * 2147483647))::integer;

-- `nonce` is drawn by the process that has the name: the same epoch of another process doesn't pass for its own, and the
-- process takes its own name back at once when its session was cut.
ALTER TABLE outbox.relays ADD COLUMN nonce uuid;
