-- What each group may do: all of it, and nothing else. The schema's owner applies it, and again whenever anything has been
-- migrated; what else a group was given is taken away. docs/roles.md shows it as a table, which a test compares.
--
-- Columns are listed where the group must not choose the others: an id, a version, a transaction, a time.

REVOKE ALL ON ALL TABLES IN SCHEMA outbox
    FROM outbox_submitter, outbox_worker, outbox_viewer, outbox_operator, outbox_relay, outbox_consumer;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA outbox
    FROM outbox_submitter, outbox_worker, outbox_viewer, outbox_operator, outbox_relay, outbox_consumer;

GRANT USAGE ON SCHEMA outbox
    TO outbox_submitter, outbox_worker, outbox_viewer, outbox_operator, outbox_relay, outbox_consumer;
GRANT SELECT ON outbox.schema_migrations
    TO outbox_submitter, outbox_worker, outbox_viewer, outbox_operator, outbox_relay, outbox_consumer;

-- Submitter: starts workflows, sees where they stand, and writes messages.
GRANT SELECT (pipeline, initial_status, reaction_of, plain, json_schema, data_version) ON outbox.pipelines TO outbox_submitter;
GRANT INSERT (pipeline, entity_id, current_status, metadata),
      SELECT (id, pipeline, entity_id, current_status, version, created_at, updated_at)
    ON outbox.workflow_states TO outbox_submitter;

-- Worker: claims, commits, records dead jobs, renews its lease, sweeps, folds counts.
GRANT SELECT ON outbox.pipelines, outbox.stages, outbox.routes, outbox.legal_changes, outbox.state_changes TO outbox_worker;
GRANT SELECT, UPDATE (current_status, metadata, version, updated_at) ON outbox.workflow_states TO outbox_worker;
GRANT SELECT, UPDATE, DELETE ON outbox.jobs TO outbox_worker;
GRANT SELECT, INSERT, UPDATE (pipeline, entity_id, stage, status, entered, attempts, error, traceback, died_at)
    ON outbox.dead_jobs TO outbox_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.workers TO outbox_worker;
GRANT SELECT, INSERT, DELETE ON outbox.status_counts TO outbox_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.status_flow, outbox.error_kinds TO outbox_worker;
GRANT SELECT, DELETE ON outbox.dead_counts TO outbox_worker;

-- Both: messages. With an id, a transaction or a time of their own choice they would be lost on the way.
GRANT INSERT (message_id, topic, key, payload, headers, workflow_id) ON outbox.messages TO outbox_submitter, outbox_worker;
GRANT USAGE ON SEQUENCE outbox.message_ids TO outbox_submitter, outbox_worker;

-- Viewer: sees everything. Operator: sees everything, and does what a person does.
GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO outbox_viewer, outbox_operator;
GRANT UPDATE (current_status) ON outbox.workflow_states TO outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.retry(uuid[], text, text), outbox.retry(text, text, text, text) TO outbox_operator;
GRANT DELETE ON outbox.relays TO outbox_operator;
GRANT UPDATE (retry), DELETE ON outbox.parked_messages, outbox.parked_deliveries TO outbox_operator;

-- Relay: reads the log, keeps its place in it and what it parks, turns the ring and empties what all relays have passed.
-- After a restore it stamps all messages.
GRANT SELECT, TRUNCATE, UPDATE (xid) ON outbox.messages TO outbox_relay;
GRANT SELECT, TRUNCATE ON outbox.messages_0, outbox.messages_1, outbox.messages_2, outbox.messages_3 TO outbox_relay;
GRANT SELECT, UPDATE ON SEQUENCE outbox.message_ids TO outbox_relay;
GRANT SELECT, INSERT, UPDATE ON outbox.relays TO outbox_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.parked_messages TO outbox_relay;

-- Consumer: records ids, forgets those whose message had no effect after all, parks what it can't handle.
GRANT SELECT, INSERT (consumer, message_id), DELETE ON outbox.inbox TO outbox_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.delivery_attempts, outbox.parked_deliveries TO outbox_consumer;

-- Every worker and every consumer lets the inbox forget what is old.
GRANT EXECUTE ON FUNCTION outbox.inbox_forget(double precision) TO outbox_worker, outbox_consumer;

-- Waits. A submitter also sends signals; a person sends them too, and decides. A worker reminds.
GRANT INSERT (pipeline, entity_id, name, payload, signal_id), SELECT (id, workflow_id, name, signal_id, taken_at)
    ON outbox.signals TO outbox_submitter, outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.signal_unknown(text, text) TO outbox_submitter, outbox_viewer, outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.decide(text, text, text, text, text, jsonb, text, uuid, text[], jsonb),
    outbox.delegate(text, timestamptz, text, text[], text), outbox.delegation_end(text, text) TO outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.cancel(text, text, text, text) TO outbox_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.checkpoints, outbox.effects TO outbox_worker;
GRANT EXECUTE ON FUNCTION outbox.effects_ask(uuid, bigint, integer, integer, jsonb) TO outbox_worker;
GRANT SELECT, INSERT (sha256, content), UPDATE (loose_since) ON outbox.blob_parts TO outbox_worker;
GRANT SELECT, INSERT (sha256, size, parts), UPDATE (loose) ON outbox.blobs TO outbox_worker;
GRANT SELECT, INSERT (workflow_id, sha256, entered), UPDATE (entered, kept_until) ON outbox.blob_uses TO outbox_worker;
GRANT EXECUTE ON FUNCTION outbox.blob_uses_sweep(float8, integer), outbox.blobs_sweep(float8, integer) TO outbox_worker;
GRANT SELECT, UPDATE, DELETE ON outbox.orphans TO outbox_worker;
GRANT SELECT ON outbox.children, outbox.pauses, outbox.limits TO outbox_worker;
GRANT EXECUTE ON FUNCTION outbox.jobs_claim_limited(integer, text, text, integer, boolean, float8, float8, float8) TO outbox_worker;
GRANT EXECUTE ON FUNCTION outbox.start_times_return(text, text, uuid[], float8[], float8) TO outbox_worker;
GRANT SELECT, UPDATE, DELETE ON outbox.partition_rates TO outbox_worker;
GRANT EXECUTE ON FUNCTION outbox.reactions_forget(float8, integer),
    outbox.reactions_forget(float8, integer, uuid[], uuid[]) TO outbox_worker;
GRANT EXECUTE ON FUNCTION outbox.parents_join(uuid[], uuid[], integer) TO outbox_worker;
GRANT SELECT ON outbox.waits TO outbox_worker;
GRANT INSERT (pipeline, stage, paused_by, reason), DELETE ON outbox.pauses TO outbox_operator;
GRANT UPDATE (concurrency, rate, partition_concurrency, partition_rate) ON outbox.limits TO outbox_operator;
GRANT SELECT, UPDATE (reminders, remind_at, assignee, escalate_at, escalated_at) ON outbox.approvals TO outbox_worker;
GRANT SELECT, UPDATE (next_at, last_at, ran_at, attempts, retry_at, error) ON outbox.schedules TO outbox_worker;

-- Spokesman: names other people when it decides, and makes links for them. A cluster whose groups are older than this one has it
-- after the next `outbox migrate --roles`.
DO $$
BEGIN
    IF to_regrole('outbox_spokesman') IS NOT NULL THEN
        REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM outbox_spokesman;
        REVOKE ALL ON ALL SEQUENCES IN SCHEMA outbox FROM outbox_spokesman;
        GRANT USAGE ON SCHEMA outbox TO outbox_spokesman;
        GRANT SELECT ON outbox.schema_migrations TO outbox_spokesman;
        GRANT EXECUTE ON FUNCTION outbox.approval_link(text, text, text, timestamptz, uuid, text[]),
            outbox.link_use(uuid, text, text, jsonb, text, jsonb) TO outbox_spokesman;
    END IF;
END $$;
