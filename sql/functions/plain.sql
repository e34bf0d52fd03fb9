-- Which version the data has that comes without `$version`. Outbox's own code states the version of what it writes, unless
-- that is version 1. A pipeline says of which version the data of other writers is (`plain`): where that is not 1, their data
-- is stamped as it is written, and what Outbox's own code of version 1 writes is marked as that.

-- Data as a writer other than Outbox sends it.
CREATE OR REPLACE FUNCTION outbox.data_stamped(data jsonb, plain integer) RETURNS jsonb
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN plain > 1 AND jsonb_typeof(data) = 'object' AND NOT data ? '$version'
            THEN data || jsonb_build_object('$version', plain) ELSE data END;
COMMENT ON FUNCTION outbox.data_stamped(jsonb, integer) IS
    'Internal: data of a writer that states no version, with the version that the pipeline says it has.';

-- Data as Outbox's own code writes it: without a mark it has version 1.
CREATE OR REPLACE FUNCTION outbox.data_of_code(data jsonb, plain integer) RETURNS jsonb
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN plain > 1 AND jsonb_typeof(data) = 'object' AND NOT data ? '$version'
            THEN data || '{"$version": 1}' ELSE data END;
COMMENT ON FUNCTION outbox.data_of_code(jsonb, integer) IS
    'Internal: data of Outbox''s own code, marked as version 1 where data without a mark is of another.';

-- As the owner: who may change a workflow need not see pipelines.
CREATE OR REPLACE FUNCTION outbox.plain_of(pipeline text) RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT p.plain FROM outbox.pipelines AS p WHERE p.pipeline = plain_of.pipeline $$;
COMMENT ON FUNCTION outbox.plain_of(text) IS
    'Internal: returns which version the data of a pipeline has that is written without $version.';
