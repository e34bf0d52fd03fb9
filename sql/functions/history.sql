-- The audit trail is append-only, with two exceptions, each of which says so with a setting of its own transaction: retention may
-- delete, and erasing may take reasons away, which nobody but the owner may do.
-- The settings are fixed, as the function runs with the rights of the role that deletes: an operator in front of pg_catalog in
-- its search_path must not decide.
CREATE OR REPLACE FUNCTION outbox.state_changes_are_append_only() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('outbox.retention', true) = 'on' THEN
        RETURN NULL;
    ELSIF TG_OP = 'UPDATE' AND TG_LEVEL = 'STATEMENT' AND current_setting('outbox.erasing', true) = 'on'
        AND pg_has_role((SELECT c.relowner FROM pg_class AS c WHERE c.oid = TG_RELID), 'USAGE') THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'outbox.% is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'OB005', DETAIL = jsonb_build_object('table', TG_TABLE_NAME, 'operation', TG_OP)::text,
              HINT = 'Retention deletes old history: outbox worker --keep-history DAYS. `outbox erase` erases the reasons in it.';
END
$$;
COMMENT ON FUNCTION outbox.state_changes_are_append_only() IS 'Internal: refuses to change or to lose history.';
