-- The groups that login roles are put into: `GRANT outbox_worker TO shop_worker`. They belong to the cluster, not to a
-- database, so another database's migration may make them at the same moment. One that is there is left as it is.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['outbox_submitter', 'outbox_worker', 'outbox_viewer', 'outbox_operator', 'outbox_relay',
                                'outbox_consumer', 'outbox_spokesman']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
END $$;
