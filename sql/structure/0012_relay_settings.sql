-- What a relay was started with, in its row: a start with other settings would deliver to another place what the name has
-- not delivered yet, and lose it for the first one. `settings` is null until a relay of this release takes the name.
-- `settings_since` is the cursor at which they began, apart from the target: a further shard of the set begins there, too.
ALTER TABLE outbox.relays ADD COLUMN settings jsonb, ADD COLUMN settings_since pg_snapshot;
