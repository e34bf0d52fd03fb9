-- Which function runs when. A file of its own because it locks: CREATE OR REPLACE TRIGGER waits for the writers of its table
-- and holds up later ones, and replacing a function does not.

-- The engine's own statements say so for themselves (outbox.of_code), and have filled in everything: that spares them a call
-- for each row.
CREATE OR REPLACE TRIGGER workflow_fill_initial
    BEFORE INSERT ON outbox.workflow_states
    FOR EACH ROW WHEN (NEW.current_status IS NULL OR NEW.version <> 1
                       OR current_setting('outbox.of_code', true) IS DISTINCT FROM statement_timestamp()::text)
    EXECUTE FUNCTION outbox.workflow_fill_initial();

-- Names of reactions have a slash. Asked here, it spares most rows a call.
CREATE OR REPLACE TRIGGER reactions_begin_with_a_change
    BEFORE INSERT ON outbox.workflow_states
    FOR EACH ROW WHEN (NEW.pipeline LIKE '%/%')
    EXECUTE FUNCTION outbox.reactions_begin_with_a_change();

CREATE OR REPLACE TRIGGER workflows_started
    AFTER INSERT ON outbox.workflow_states
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.workflows_started();

-- The engine's own statements move the version themselves, which spares them a call for each row.
CREATE OR REPLACE TRIGGER workflow_move_version
    BEFORE UPDATE ON outbox.workflow_states
    FOR EACH ROW
    WHEN (NEW.version <> OLD.version + 1 OR NEW.current_status = OLD.current_status
          OR NEW.updated_at NOT BETWEEN statement_timestamp() AND clock_timestamp() OR NEW.id <> OLD.id
          OR NEW.pipeline <> OLD.pipeline OR NEW.entity_id <> OLD.entity_id)
    EXECUTE FUNCTION outbox.workflow_move_version();

CREATE OR REPLACE TRIGGER workflows_changed
    AFTER UPDATE ON outbox.workflow_states
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.workflows_changed();

CREATE OR REPLACE TRIGGER workflows_deleted
    AFTER DELETE ON outbox.workflow_states
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.workflows_deleted();

CREATE OR REPLACE TRIGGER workflow_states_are_not_truncated
    BEFORE TRUNCATE ON outbox.workflow_states
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.state_changes_are_append_only();

CREATE OR REPLACE TRIGGER pipeline_deleted
    BEFORE DELETE ON outbox.pipelines
    FOR EACH ROW EXECUTE FUNCTION outbox.pipeline_deleted();

CREATE OR REPLACE TRIGGER state_changes_are_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox.state_changes
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.state_changes_are_append_only();

-- What erasing may not change: what happened, who did it, and when.
CREATE OR REPLACE TRIGGER state_changes_stay
    BEFORE UPDATE ON outbox.state_changes
    FOR EACH ROW
    WHEN ((OLD.id, OLD.workflow_id, OLD.from_status, OLD.to_status, OLD.version, OLD.actor, OLD.stage, OLD.attempt, OLD.at, OLD.login)
          IS DISTINCT FROM
          (NEW.id, NEW.workflow_id, NEW.from_status, NEW.to_status, NEW.version, NEW.actor, NEW.stage, NEW.attempt, NEW.at, NEW.login)
          OR NEW.reason IS NOT NULL)
    EXECUTE FUNCTION outbox.state_changes_are_append_only();

CREATE OR REPLACE TRIGGER dead_job_placed
    BEFORE INSERT OR UPDATE ON outbox.dead_jobs
    FOR EACH ROW EXECUTE FUNCTION outbox.dead_job_placed();

CREATE OR REPLACE TRIGGER dead_jobs_begin
    AFTER INSERT ON outbox.dead_jobs
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.dead_jobs_counted();

CREATE OR REPLACE TRIGGER dead_jobs_change
    AFTER UPDATE ON outbox.dead_jobs
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.dead_jobs_counted();

CREATE OR REPLACE TRIGGER dead_jobs_end
    AFTER DELETE ON outbox.dead_jobs
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.dead_jobs_counted();

CREATE OR REPLACE TRIGGER signal_receive
    BEFORE INSERT ON outbox.signals
    FOR EACH ROW EXECUTE FUNCTION outbox.signal_receive();

CREATE OR REPLACE TRIGGER signal_take
    AFTER INSERT ON outbox.signals
    FOR EACH ROW EXECUTE FUNCTION outbox.signal_take();

CREATE OR REPLACE TRIGGER pause_begins
    BEFORE INSERT ON outbox.pauses
    FOR EACH ROW EXECUTE FUNCTION outbox.pause_begins();

CREATE OR REPLACE TRIGGER pause_kept
    AFTER INSERT OR DELETE ON outbox.pauses
    FOR EACH ROW EXECUTE FUNCTION outbox.pause_kept();

CREATE OR REPLACE TRIGGER pause_was_there
    AFTER INSERT ON outbox.pauses
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.unchanged();

CREATE OR REPLACE TRIGGER pause_was_not_there
    AFTER DELETE ON outbox.pauses
    REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.unchanged();

CREATE OR REPLACE TRIGGER messages_written
    AFTER INSERT ON outbox.messages
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.messages_written();

CREATE OR REPLACE TRIGGER inbox_refuse
    BEFORE INSERT ON outbox.inbox
    FOR EACH ROW EXECUTE FUNCTION outbox.inbox_refuse();

CREATE OR REPLACE TRIGGER inbox_knew
    AFTER INSERT ON outbox.inbox
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.unchanged();

-- A trigger function that runs as its owner must not be borrowed: as a trigger on a table of somebody's own,
-- workflows_started() would write any history and any job. EXECUTE is asked for when a trigger is created, never when it fires.
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN
        SELECT p.oid FROM pg_proc AS p WHERE p.pronamespace = 'outbox'::regnamespace AND p.prorettype = 'trigger'::regtype
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
    END LOOP;
END $$;
