-- Which keys have a parked message that stops their later ones for good: found among however many that only wait.

CREATE INDEX parked_messages_stopping ON outbox.parked_messages (relay, key, id)
    WHERE key IS NOT NULL AND waits_until IS NULL AND NOT retry;
