-- Who may vote in whose place.

-- name: delegate
-- Lets somebody vote in another's place until an end. See the function in sql/functions/votes.sql.
-- Writes delegations. Uses delegations_pkey.
SELECT outbox.delegate(%(to)s, %(until)s::timestamptz, %(by)s, %(groups)s::text[], %(reason)s);

-- name: delegation_end
-- Ends a delegation before its time; returns whether there was one.
-- Writes delegations. Uses delegations_pkey.
SELECT outbox.delegation_end(%(to)s, %(by)s);
