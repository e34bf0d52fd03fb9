-- What people are asked, and what they answer.

-- name: decide
SELECT outbox.decide(%(pipeline)s, %(entity)s, %(decision)s, %(by)s, %(reason)s, %(edit)s::text::jsonb, %(shown)s);
