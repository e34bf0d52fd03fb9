-- What is checked of the data that other programs write, where the pipeline wants it (Pipeline(strict=True)). What Outbox's own
-- code writes has been validated by the pipeline's type, and so has what a worker writes.

-- As the owner: who may change a workflow need not see pipelines.
CREATE OR REPLACE FUNCTION outbox.door_of(pipeline text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT p.door FROM outbox.pipelines AS p WHERE p.pipeline = door_of.pipeline $$;
COMMENT ON FUNCTION outbox.door_of(text) IS
    'Internal: returns what is checked of the data of a pipeline that other programs write.';

-- Data of another version has another form, which the code upgrades. Only an object says its version.
CREATE OR REPLACE FUNCTION outbox.data_check(pipeline text, entity_id text, data jsonb, door jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wrong record;
BEGIN
    IF jsonb_typeof(door -> 'types') = 'array' AND NOT door -> 'types' ? jsonb_typeof(data) THEN
        SELECT NULL::text AS field, door -> 'types' AS expected, jsonb_typeof(data) AS found INTO wrong;
    ELSIF jsonb_typeof(data) <> 'object' OR coalesce(data -> '$version', '1') <> door -> 'version' THEN
        RETURN;
    ELSE
        SELECT coalesce(p.present[1], f.names[1]) AS field, to_jsonb(f.types) AS expected,
               jsonb_typeof(data -> p.present[1]) AS found
        INTO wrong
        FROM jsonb_to_recordset(door -> 'fields') AS f (names text[], types text[], required boolean)
        CROSS JOIN LATERAL (SELECT array_agg(n.name) AS present FROM unnest(f.names) AS n (name) WHERE data ? n.name) AS p
        WHERE f.required AND p.present IS NULL
           OR cardinality(p.present) = 1 AND f.types IS NOT NULL AND jsonb_typeof(data -> p.present[1]) <> ALL (f.types)
        LIMIT 1;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    RAISE EXCEPTION 'pipeline "%", entity "%": %', pipeline, entity_id,
        CASE WHEN wrong.found IS NULL THEN format('the data has no field "%s"', wrong.field)
             ELSE format('%s is %s, and must be %s',
                         CASE WHEN wrong.field IS NULL THEN 'the data' ELSE format('the field "%s" of the data', wrong.field) END,
                         wrong.found, (SELECT string_agg(e.type, ' or ') FROM jsonb_array_elements_text(wrong.expected) AS e (type)))
        END
        USING ERRCODE = 'OB040',
              DETAIL = jsonb_build_object('pipeline', pipeline, 'entity_id', entity_id, 'field', wrong.field,
                                          'expected', wrong.expected, 'found', wrong.found)::text,
              HINT = 'outbox.pipelines.json_schema has the schema of the data.';
END
$$;
COMMENT ON FUNCTION outbox.data_check(text, text, jsonb, jsonb) IS
    'Internal: refuses data without a required field, or with a field of another JSON type than the pipeline''s type accepts.';
