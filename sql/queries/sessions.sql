-- What the sessions of the web page and of MCP set.

-- name: patience_set
-- Sets for how many ms a statement of this transaction may run.
SELECT set_config('statement_timeout', %(ms)s::text, true);
