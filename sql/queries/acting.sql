-- In whose name, and why, the statements of a call change something.

-- name: act_as
-- Sets actor and reason for the statements that follow in the transaction (null: as before), and returns what they were.
WITH before AS MATERIALIZED (
    SELECT coalesce(current_setting('outbox.actor', true), '') AS actor,
           coalesce(current_setting('outbox.reason', true), '') AS reason
)
SELECT b.actor, b.reason, set_config('outbox.actor', coalesce(%(by)s, b.actor), true),
       set_config('outbox.reason', coalesce(%(reason)s, b.reason), true)
FROM before AS b;
