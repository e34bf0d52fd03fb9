-- Parked messages of a workflow, for who erases it.
CREATE INDEX parked_messages_by_workflow ON outbox.parked_messages (workflow_id) WHERE workflow_id IS NOT NULL;
