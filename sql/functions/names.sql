-- Names that nothing has: what was probably meant.

-- Two names are alike as far as they share pairs of characters. Only the beginning of a long one is looked at.
CREATE OR REPLACE FUNCTION outbox.nearest(given text, names text[]) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.name
    FROM (
        SELECT c.name, (
            SELECT count(*) FILTER (WHERE p.sides = 2)::float8 / count(*)
            FROM (
                SELECT e.pair, count(DISTINCT e.side) AS sides
                FROM (
                    SELECT 1 AS side, substr(lower(' ' || left(given, 100) || ' '), n, 2) AS pair
                    FROM generate_series(1, length(left(given, 100)) + 1) AS n
                    UNION ALL
                    SELECT 2, substr(lower(' ' || left(c.name, 100) || ' '), n, 2)
                    FROM generate_series(1, length(left(c.name, 100)) + 1) AS n
                ) AS e
                GROUP BY e.pair
            ) AS p
        ) AS likeness
        FROM unnest(names) AS c (name)
    ) AS f
    WHERE f.likeness >= 0.3
    ORDER BY f.likeness DESC, f.name
    LIMIT 1
$$;
COMMENT ON FUNCTION outbox.nearest(text, text[]) IS 'Internal: returns which of these names was probably meant; null if none is like it.';

-- What is wrong with the name of a signal: nothing, or that no workflow of the pipeline has waited for it so far. Of a pipeline
-- that waits by many names, perhaps one for each workflow, nothing is known.
CREATE OR REPLACE FUNCTION outbox.signal_unknown(of_pipeline text, signal_name text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('no workflow of pipeline "%s" has waited for a signal "%s" so far', of_pipeline, signal_name)
           || coalesce('; did you mean "' || outbox.nearest(signal_name, n.names) || '"?', '')
    FROM (SELECT array_agg(s.name) AS names, count(*) AS many FROM outbox.signal_names AS s WHERE s.pipeline = of_pipeline) AS n
    WHERE n.many < 100 AND NOT EXISTS (
        SELECT FROM outbox.signal_names AS s WHERE s.pipeline = of_pipeline AND s.name = signal_name)
$$;
COMMENT ON FUNCTION outbox.signal_unknown(text, text) IS
    'Says that no workflow of a pipeline has waited for a signal of this name so far, and which name was probably meant; null if one has.';
REVOKE EXECUTE ON FUNCTION outbox.signal_unknown(text, text) FROM PUBLIC;
