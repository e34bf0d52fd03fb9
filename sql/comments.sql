-- What psql shows of the tables (\d+). A comment that begins with Internal marks what may change with any release; all
-- other tables and columns are for users. Functions and views have theirs beside them.

COMMENT ON TABLE outbox.pipelines IS 'The pipelines that are deployed.';
COMMENT ON COLUMN outbox.pipelines.pipeline IS 'Its name.';
COMMENT ON COLUMN outbox.pipelines.initial_status IS
    'The status that a workflow starts in, where nothing else is said.';
COMMENT ON COLUMN outbox.pipelines.definition IS 'Internal: the definition as it was deployed.';
COMMENT ON COLUMN outbox.pipelines.deployed_at IS 'When it was last deployed.';
COMMENT ON COLUMN outbox.pipelines.reaction_of IS
    'The pipeline whose changes it reacts to; null: it is not a reaction.';
COMMENT ON COLUMN outbox.pipelines.cancelled IS
    'The status to which a workflow may be cancelled from any that is not final; null: it can''t be cancelled.';
COMMENT ON COLUMN outbox.pipelines.plain IS
    'The version of the data that is written without $version, by programs other than Outbox; null: 1, or no version is told.';
COMMENT ON COLUMN outbox.pipelines.json_schema IS
    'The JSON schema of the data, by the names of its fields; null: the type has none, or it was deployed by an older release.';
COMMENT ON COLUMN outbox.pipelines.data_version IS
    'The version of the data that the schema is of: what data says as $version, if it says one.';
COMMENT ON COLUMN outbox.pipelines.door IS
    'Internal: what is checked of the data that other programs write; null: nothing.';
COMMENT ON COLUMN outbox.pipelines.renaming IS 'Internal: the statuses that the deploy of this transaction renames.';
COMMENT ON COLUMN outbox.pipelines.former_names IS 'Internal: the former names of statuses, with the present ones.';

COMMENT ON TABLE outbox.stages IS 'The stages of each pipeline.';
COMMENT ON COLUMN outbox.stages.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.stages.stage IS 'The stage.';
COMMENT ON COLUMN outbox.stages.max_attempts IS 'How many attempts a job of it has before it is dead.';

COMMENT ON TABLE outbox.routes IS 'The statuses that each pipeline knows, and which stage takes each.';
COMMENT ON COLUMN outbox.routes.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.routes.status IS 'The status.';
COMMENT ON COLUMN outbox.routes.stage IS 'The stage that takes it; null where a workflow waits or has ended.';
COMMENT ON COLUMN outbox.routes.running IS 'Whether it is the in-progress status of its stage.';
COMMENT ON COLUMN outbox.routes.final IS 'Whether a workflow has ended in it.';
COMMENT ON COLUMN outbox.routes.deadline IS 'How long a workflow may stay in it.';
COMMENT ON COLUMN outbox.routes.on_deadline IS 'The status that it moves to then.';
COMMENT ON COLUMN outbox.routes.reactions IS 'The names of the reactions to it.';
COMMENT ON COLUMN outbox.routes.notify IS 'Whether a change to it sends a notification on the channel "outbox.status".';
COMMENT ON COLUMN outbox.routes.partition IS
    'Where in the data the partition is, as a path; null: the stage is not limited.';
COMMENT ON COLUMN outbox.routes.priority IS 'Where in the data the priority is, as a path.';

COMMENT ON TABLE outbox.legal_changes IS 'The changes of status that each pipeline allows.';
COMMENT ON COLUMN outbox.legal_changes.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.legal_changes.from_status IS 'The status before.';
COMMENT ON COLUMN outbox.legal_changes.to_status IS 'The status after.';

COMMENT ON TABLE outbox.limits IS
    'The limits of each limited stage, over all workers. UPDATE changes them until the next deploy.';
COMMENT ON COLUMN outbox.limits.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.limits.stage IS 'The stage.';
COMMENT ON COLUMN outbox.limits.concurrency IS 'How many of its jobs run at once; null: any number.';
COMMENT ON COLUMN outbox.limits.rate IS 'How many of its attempts start in a second; null: any number.';
COMMENT ON COLUMN outbox.limits.partition_concurrency IS
    'How many jobs of each partition run at once; null: any number.';
COMMENT ON COLUMN outbox.limits.partition_rate IS
    'How many attempts of each partition start in a second; null: any number.';
COMMENT ON COLUMN outbox.limits.partitioned IS 'Whether its jobs have partitions.';
COMMENT ON COLUMN outbox.limits.next_at IS 'Internal: the first free start time.';
COMMENT ON COLUMN outbox.limits.served IS 'Internal: the partition that was served last.';

COMMENT ON TABLE outbox.actions IS
    'What people have done that changes no status: pauses and resumptions of stages, retries of dead jobs.';
COMMENT ON COLUMN outbox.actions.id IS 'Its id, a UUIDv7.';
COMMENT ON COLUMN outbox.actions.action IS 'pause, resume or retry.';
COMMENT ON COLUMN outbox.actions.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.actions.stage IS 'The stage that was paused or resumed, or that of the new job.';
COMMENT ON COLUMN outbox.actions.workflow_id IS 'The workflow whose job runs again; null: it is about a stage.';
COMMENT ON COLUMN outbox.actions.actor IS 'Who did it, as they call themselves.';
COMMENT ON COLUMN outbox.actions.login IS 'The login role that did.';
COMMENT ON COLUMN outbox.actions.reason IS 'Why.';
COMMENT ON COLUMN outbox.actions.at IS 'When.';

COMMENT ON TABLE outbox.pauses IS 'Stages that no worker claims for. INSERT pauses, DELETE resumes.';
COMMENT ON COLUMN outbox.pauses.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.pauses.stage IS 'The stage.';
COMMENT ON COLUMN outbox.pauses.paused_by IS 'Who paused it.';
COMMENT ON COLUMN outbox.pauses.login IS 'The login role that did; null: before it was kept.';
COMMENT ON COLUMN outbox.pauses.reason IS 'Why.';
COMMENT ON COLUMN outbox.pauses.paused_at IS 'When.';

COMMENT ON TABLE outbox.schedules IS 'Cron schedules, and how far each is.';
COMMENT ON COLUMN outbox.schedules.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.schedules.schedule IS 'Its name.';
COMMENT ON COLUMN outbox.schedules.cron IS 'When it ticks, as five cron fields.';
COMMENT ON COLUMN outbox.schedules.timezone IS 'The time zone of these.';
COMMENT ON COLUMN outbox.schedules.catch_up IS 'Whether ticks that were missed are run, each of them.';
COMMENT ON COLUMN outbox.schedules.next_at IS 'The tick that comes next.';
COMMENT ON COLUMN outbox.schedules.last_at IS 'The last tick that has run.';
COMMENT ON COLUMN outbox.schedules.ran_at IS 'When that was run.';
COMMENT ON COLUMN outbox.schedules.attempts IS 'How often the tick at next_at has failed.';
COMMENT ON COLUMN outbox.schedules.retry_at IS 'When it is tried again.';
COMMENT ON COLUMN outbox.schedules.error IS 'Why it failed.';

COMMENT ON TABLE outbox.workflow_states IS
    'One row for each workflow: an entity on its way through a pipeline. INSERT starts it, UPDATE of current_status moves it.';
COMMENT ON COLUMN outbox.workflow_states.id IS 'Its id, a UUIDv7.';
COMMENT ON COLUMN outbox.workflow_states.pipeline IS 'Its pipeline.';
COMMENT ON COLUMN outbox.workflow_states.entity_id IS 'What it is about; unique within the pipeline.';
COMMENT ON COLUMN outbox.workflow_states.current_status IS
    'Where it stands. If an INSERT leaves it out, the pipeline''s initial status.';
COMMENT ON COLUMN outbox.workflow_states.metadata IS 'Its data.';
COMMENT ON COLUMN outbox.workflow_states.version IS 'Moves by one with each change of status or data.';
COMMENT ON COLUMN outbox.workflow_states.created_at IS 'When it started.';
COMMENT ON COLUMN outbox.workflow_states.updated_at IS 'When its status or data last changed.';

COMMENT ON TABLE outbox.state_changes IS
    'The history of workflows: one row for each change of status. Append-only.';
COMMENT ON COLUMN outbox.state_changes.id IS 'The order in which changes were recorded.';
COMMENT ON COLUMN outbox.state_changes.workflow_id IS 'The workflow.';
COMMENT ON COLUMN outbox.state_changes.from_status IS 'The status before; null: it started.';
COMMENT ON COLUMN outbox.state_changes.to_status IS 'The status after.';
COMMENT ON COLUMN outbox.state_changes.version IS 'The version that the workflow got by this.';
COMMENT ON COLUMN outbox.state_changes.actor IS
    'Who made it: a worker, what the setting outbox.actor says, or the database role.';
COMMENT ON COLUMN outbox.state_changes.login IS
    'The login role that made it, whatever it says of itself; null: before it was kept.';
COMMENT ON COLUMN outbox.state_changes.reason IS 'Why, as the setting outbox.reason says.';
COMMENT ON COLUMN outbox.state_changes.stage IS 'The stage whose job made it, if one did.';
COMMENT ON COLUMN outbox.state_changes.attempt IS 'Which attempt of that job.';
COMMENT ON COLUMN outbox.state_changes.at IS 'When, by the database''s clock.';

COMMENT ON TABLE outbox.children IS 'Workflows that another workflow has spawned.';
COMMENT ON COLUMN outbox.children.child_id IS 'The child.';
COMMENT ON COLUMN outbox.children.parent_id IS 'Its parent.';
COMMENT ON COLUMN outbox.children.cancel_to IS
    'The status that the child moves to when its parent ends first; null: it goes on alone.';

COMMENT ON TABLE outbox.jobs IS
    'The queue: one row for each workflow that a stage must work on, or that has a deadline. For reading.';
COMMENT ON COLUMN outbox.jobs.workflow_id IS 'The workflow.';
COMMENT ON COLUMN outbox.jobs.id IS 'Internal: the order of claims.';
COMMENT ON COLUMN outbox.jobs.pipeline IS 'Its pipeline.';
COMMENT ON COLUMN outbox.jobs.stage IS 'The stage; null: it is nothing but a deadline.';
COMMENT ON COLUMN outbox.jobs.status IS 'Internal: the status that it is for.';
COMMENT ON COLUMN outbox.jobs.entered IS
    'The workflow''s version when it came into this status: with the stage it names the work.';
COMMENT ON COLUMN outbox.jobs.run_at IS 'When it may run.';
COMMENT ON COLUMN outbox.jobs.claimed_at IS 'When its worker claimed it.';
COMMENT ON COLUMN outbox.jobs.owner IS 'The worker that runs it; null: none does.';
COMMENT ON COLUMN outbox.jobs.attempt IS 'How many attempts it has had, the present one included.';
COMMENT ON COLUMN outbox.jobs.due IS 'Internal: whether run_at has come; null: it waits for what a person says of an effect.';
COMMENT ON COLUMN outbox.jobs.careful IS 'Internal: whether it runs apart from its like, since a worker died under it.';
COMMENT ON COLUMN outbox.jobs.error IS 'Why its last attempt failed.';
COMMENT ON COLUMN outbox.jobs.deadline IS 'When the workflow moves to on_deadline, whatever its stage does.';
COMMENT ON COLUMN outbox.jobs.on_deadline IS 'The status that it moves to then.';
COMMENT ON COLUMN outbox.jobs.progress IS 'What its handler last reported.';
COMMENT ON COLUMN outbox.jobs.released IS
    'How often it was put back without an attempt being counted, since one was or its status changed; error says why.';
COMMENT ON COLUMN outbox.jobs.released_by IS
    'Internal: the worker that could not read its data and leaves it to others for a while; null: none.';
COMMENT ON COLUMN outbox.jobs.partition IS 'The partition that it belongs to; null: its stage is not limited.';
COMMENT ON COLUMN outbox.jobs.priority IS 'A higher one goes first within the partition.';

COMMENT ON TABLE outbox.dead_jobs IS
    'Jobs that have failed for good. The workflow stays in its status until a person decides: by outbox retry, or a change of it.';
COMMENT ON COLUMN outbox.dead_jobs.workflow_id IS 'The workflow.';
COMMENT ON COLUMN outbox.dead_jobs.pipeline IS 'Its pipeline.';
COMMENT ON COLUMN outbox.dead_jobs.entity_id IS 'What it is about.';
COMMENT ON COLUMN outbox.dead_jobs.stage IS 'The stage.';
COMMENT ON COLUMN outbox.dead_jobs.status IS 'The status that it is in.';
COMMENT ON COLUMN outbox.dead_jobs.entered IS 'The workflow''s version when it came into this status.';
COMMENT ON COLUMN outbox.dead_jobs.attempts IS 'How many attempts were made.';
COMMENT ON COLUMN outbox.dead_jobs.error IS 'Why the last one failed.';
COMMENT ON COLUMN outbox.dead_jobs.died_at IS 'When.';
COMMENT ON COLUMN outbox.dead_jobs.traceback IS
    'The traceback of the last attempt, from the handler down; null if there is none. Cut in the middle if it is long.';

COMMENT ON TABLE outbox.workers IS 'One row for each process that works. For reading.';
COMMENT ON COLUMN outbox.workers.id IS 'Its id, drawn at random; each process has a new one.';
COMMENT ON COLUMN outbox.workers.name IS 'Host, process and what else names it.';
COMMENT ON COLUMN outbox.workers.release IS 'The release of the application that it runs, if it was told.';
COMMENT ON COLUMN outbox.workers.stages IS 'The stages that it serves.';
COMMENT ON COLUMN outbox.workers.lease IS 'How long it may be silent before its jobs are others''.';
COMMENT ON COLUMN outbox.workers.idle IS 'Internal: whether to wake it when there is work.';
COMMENT ON COLUMN outbox.workers.watched IS 'Internal: whether it holds the advisory lock of its id.';
COMMENT ON COLUMN outbox.workers.started_at IS 'When it started.';
COMMENT ON COLUMN outbox.workers.beat_at IS 'When it was last heard of.';

COMMENT ON TABLE outbox.checkpoints IS
    'Results of calls that a later attempt at the same work does not make again.';
COMMENT ON COLUMN outbox.checkpoints.workflow_id IS 'The workflow.';
COMMENT ON COLUMN outbox.checkpoints.stage IS 'The stage.';
COMMENT ON COLUMN outbox.checkpoints.entered IS 'The workflow''s version when it came to the stage.';
COMMENT ON COLUMN outbox.checkpoints.key IS 'Which call.';
COMMENT ON COLUMN outbox.checkpoints.function IS 'The function that was called.';
COMMENT ON COLUMN outbox.checkpoints.result IS 'What it returned; null if it is a blob.';
COMMENT ON COLUMN outbox.checkpoints.blob IS 'The hash of the blob that is the result, as JSON text: outbox.blob(encode(blob, ''hex'')).';
COMMENT ON COLUMN outbox.checkpoints.attempt IS 'The attempt that called it.';
COMMENT ON COLUMN outbox.checkpoints.made_at IS 'When.';

COMMENT ON TABLE outbox.effects IS
    'Calls that must not happen twice, and what is known of each: outbox.effect_state() says it. For reading.';
COMMENT ON COLUMN outbox.effects.workflow_id IS 'The workflow.';
COMMENT ON COLUMN outbox.effects.entered IS 'The workflow''s version when it came into its status.';
COMMENT ON COLUMN outbox.effects.name IS 'What its handler calls it.';
COMMENT ON COLUMN outbox.effects.stage IS 'The stage.';
COMMENT ON COLUMN outbox.effects.function IS 'The function that is called.';
COMMENT ON COLUMN outbox.effects.call IS 'Internal: the last call.';
COMMENT ON COLUMN outbox.effects.calls IS 'How often it was called.';
COMMENT ON COLUMN outbox.effects.attempt IS 'The attempt that has made the last call.';
COMMENT ON COLUMN outbox.effects.state IS
    'started, done or not done. It is unknown if it stays started when its attempt has ended, or with an error.';
COMMENT ON COLUMN outbox.effects.result IS 'What the function returned; null if it is a blob.';
COMMENT ON COLUMN outbox.effects.blob IS 'The hash of the blob that is the result, as JSON text. It is kept while the work has a job.';
COMMENT ON COLUMN outbox.effects.error IS 'What it raised.';
COMMENT ON COLUMN outbox.effects.known_by IS 'How that is known: by the call, by look_up, or by the person who has said so.';
COMMENT ON COLUMN outbox.effects.started_at IS 'When the last call was intended.';
COMMENT ON COLUMN outbox.effects.ended_at IS 'When it was known whether it has happened.';
COMMENT ON TABLE outbox.blobs IS
    'Contents that are too large for a row. outbox.blob(HASH) returns one.';
COMMENT ON COLUMN outbox.blobs.sha256 IS 'The hash of the content, by which data names it.';
COMMENT ON COLUMN outbox.blobs.size IS 'Its bytes.';
COMMENT ON COLUMN outbox.blobs.parts IS 'The hashes of its parts, in their order.';
COMMENT ON COLUMN outbox.blobs.loose IS 'Internal: whether the next sweep looks for uses of it.';

COMMENT ON TABLE outbox.blob_parts IS 'Parts of blobs. Blobs that have a part in common share it.';
COMMENT ON COLUMN outbox.blob_parts.sha256 IS 'The hash of the part.';
COMMENT ON COLUMN outbox.blob_parts.content IS 'Its bytes.';
COMMENT ON COLUMN outbox.blob_parts.loose_since IS 'Internal: since when no blob may have it.';

COMMENT ON TABLE outbox.blob_uses IS 'Which workflow uses which blob.';
COMMENT ON COLUMN outbox.blob_uses.workflow_id IS 'The workflow.';
COMMENT ON COLUMN outbox.blob_uses.sha256 IS 'The blob.';
COMMENT ON COLUMN outbox.blob_uses.entered IS 'Internal: the workflow''s version when it came to the stage that has stored it.';
COMMENT ON COLUMN outbox.blob_uses.since IS 'Since when.';
COMMENT ON COLUMN outbox.blob_uses.kept_until IS 'Internal: an hour after this it is looked whether it is used.';

COMMENT ON TABLE outbox.approvals IS 'Questions to people, and their answers. Open until ended_at.';
COMMENT ON COLUMN outbox.approvals.id IS 'The question''s id.';
COMMENT ON COLUMN outbox.approvals.workflow_id IS 'The workflow that waits for it.';
COMMENT ON COLUMN outbox.approvals.pipeline IS 'Its pipeline.';
COMMENT ON COLUMN outbox.approvals.entity_id IS 'What it is about.';
COMMENT ON COLUMN outbox.approvals.status IS 'The status in which it waits.';
COMMENT ON COLUMN outbox.approvals.version IS 'The workflow''s version when it was asked.';
COMMENT ON COLUMN outbox.approvals.question IS 'The question.';
COMMENT ON COLUMN outbox.approvals.name IS 'What its handler calls it; null: it has no name.';
COMMENT ON COLUMN outbox.approvals.data IS 'The data that was shown when it was asked; null: before it was kept.';
COMMENT ON COLUMN outbox.approvals.own_data IS 'Whether that is data of its own; otherwise it is the workflow''s.';
COMMENT ON COLUMN outbox.approvals.shown IS 'The hash of the data that it is about; see outbox.shown().';
COMMENT ON COLUMN outbox.approvals.edits_allowed IS 'Whether an answer may change the data.';
COMMENT ON COLUMN outbox.approvals.ends_wait IS 'The answers that move the workflow though other questions are open.';
COMMENT ON COLUMN outbox.approvals.stage IS 'The stage that asked.';
COMMENT ON COLUMN outbox.approvals.worker IS 'The worker that asked.';
COMMENT ON COLUMN outbox.approvals.asked_by IS 'The person who asks, and whose vote never counts: who started the workflow, unless the handler says otherwise.';
COMMENT ON COLUMN outbox.approvals.asked_login IS 'The login role that started the workflow; null: the handler says who asks.';
COMMENT ON COLUMN outbox.approvals.approvers IS 'The groups that must agree, each with the number of its members; null: one answer is enough.';
COMMENT ON COLUMN outbox.approvals.alone IS 'The answers for which one approver is enough.';
COMMENT ON COLUMN outbox.approvals.votes IS 'How many have voted.';
COMMENT ON COLUMN outbox.approvals.escalate_at IS 'When it is passed on to another assignee; null: it is not, or was.';
COMMENT ON COLUMN outbox.approvals.escalate_to IS 'To whom.';
COMMENT ON COLUMN outbox.approvals.escalated_at IS 'When it was passed on.';
COMMENT ON COLUMN outbox.approvals.options IS 'The possible answers, each with the status that it leads to.';
COMMENT ON COLUMN outbox.approvals.assignee IS 'Who is asked; null: anybody.';
COMMENT ON COLUMN outbox.approvals.asked_at IS 'When.';
COMMENT ON COLUMN outbox.approvals.deadline IS 'When it is too late to answer.';
COMMENT ON COLUMN outbox.approvals.remind_every IS 'How often it is reminded of.';
COMMENT ON COLUMN outbox.approvals.remind_at IS 'When the next reminder is due.';
COMMENT ON COLUMN outbox.approvals.reminders IS 'How many there were.';
COMMENT ON COLUMN outbox.approvals.ended IS 'How it ended: decided, deadline or withdrawn; null: it is open.';
COMMENT ON COLUMN outbox.approvals.decision IS 'The answer; null if a change by hand fits several options.';
COMMENT ON COLUMN outbox.approvals.to_status IS 'Where the workflow went; null: other questions were open still.';
COMMENT ON COLUMN outbox.approvals.decided_by IS 'Who ended it.';
COMMENT ON COLUMN outbox.approvals.login IS 'The login role that ended it; null: it is open, or before it was kept.';
COMMENT ON COLUMN outbox.approvals.reason IS 'Why.';
COMMENT ON COLUMN outbox.approvals.edited IS 'The data as an answer or a vote has changed it.';
COMMENT ON COLUMN outbox.approvals.ended_at IS 'When it ended.';
COMMENT ON COLUMN outbox.approvals.effect IS 'The call that it is about, as outbox.effects has it; null: it is about no effect.';

COMMENT ON TABLE outbox.approval_votes IS 'The votes on questions that have approvers, one for each person.';
COMMENT ON COLUMN outbox.approval_votes.approval_id IS 'The question''s id.';
COMMENT ON COLUMN outbox.approval_votes.person IS 'The person who counts.';
COMMENT ON COLUMN outbox.approval_votes.cast_by IS 'Who has voted: that person, or one to whom they have delegated.';
COMMENT ON COLUMN outbox.approval_votes.login IS 'The login role that has voted, which may speak for others.';
COMMENT ON COLUMN outbox.approval_votes.option IS 'The answer.';
COMMENT ON COLUMN outbox.approval_votes.groups IS 'Those of the question''s approvers that the person is in. They count for one of them.';
COMMENT ON COLUMN outbox.approval_votes.shown IS 'The hash of the data that the vote is about. It counts while the data is this.';
COMMENT ON COLUMN outbox.approval_votes.reason IS 'Why.';
COMMENT ON COLUMN outbox.approval_votes.voted_at IS 'When.';

COMMENT ON TABLE outbox.delegations IS 'Who may vote in whose place, and until when. Written by outbox.delegate().';
COMMENT ON COLUMN outbox.delegations.from_person IS 'The person who has delegated, and who counts.';
COMMENT ON COLUMN outbox.delegations.to_person IS 'The person who votes in their place.';
COMMENT ON COLUMN outbox.delegations.until IS 'When it ends.';
COMMENT ON COLUMN outbox.delegations.groups IS 'The groups of the person who has delegated; null: those of the database role of that name.';
COMMENT ON COLUMN outbox.delegations.reason IS 'Why.';
COMMENT ON COLUMN outbox.delegations.since IS 'When it was made.';
COMMENT ON COLUMN outbox.delegations.login IS 'The login role that has made it.';

COMMENT ON TABLE outbox.signal_names IS 'The names of signals for which workflows have waited, up to 100 of a pipeline.';
COMMENT ON COLUMN outbox.signal_names.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.signal_names.name IS 'The name of the signal.';
COMMENT ON TABLE outbox.signals IS
    'What other systems tell workflows. INSERT (pipeline, entity_id, name, payload, signal_id) sends one.';
COMMENT ON COLUMN outbox.signals.id IS 'The order in which they came.';
COMMENT ON COLUMN outbox.signals.workflow_id IS 'The workflow; filled in.';
COMMENT ON COLUMN outbox.signals.pipeline IS 'Its pipeline.';
COMMENT ON COLUMN outbox.signals.entity_id IS 'What it is about.';
COMMENT ON COLUMN outbox.signals.name IS 'The name that the workflow waits for.';
COMMENT ON COLUMN outbox.signals.payload IS 'What it says.';
COMMENT ON COLUMN outbox.signals.signal_id IS 'A second one of this name and id is ignored.';
COMMENT ON COLUMN outbox.signals.sent_by IS 'Who sent it; filled in.';
COMMENT ON COLUMN outbox.signals.login IS 'The login role that sent it; null: before it was kept.';
COMMENT ON COLUMN outbox.signals.sent_at IS 'When; filled in.';
COMMENT ON COLUMN outbox.signals.taken_at IS 'When the workflow took it; null: not yet.';

COMMENT ON TABLE outbox.messages IS
    'The outbox: messages that relays deliver. INSERT (topic, key, payload, headers) in any transaction publishes on commit.';
COMMENT ON COLUMN outbox.messages.id IS 'The order of messages.';
COMMENT ON COLUMN outbox.messages.message_id IS 'The id by which consumers know a duplicate, a UUIDv7.';
COMMENT ON COLUMN outbox.messages.topic IS 'The topic.';
COMMENT ON COLUMN outbox.messages.key IS 'Messages of one key stay in order.';
COMMENT ON COLUMN outbox.messages.payload IS 'What it says.';
COMMENT ON COLUMN outbox.messages.headers IS 'What else it says.';
COMMENT ON COLUMN outbox.messages.workflow_id IS 'The workflow that it is about.';
COMMENT ON COLUMN outbox.messages.created_at IS 'When it was written.';
COMMENT ON COLUMN outbox.messages.xid IS 'Internal: the transaction that wrote it.';

COMMENT ON TABLE outbox.parked_messages IS
    'Messages that a relay could not send. They wait for a person: outbox parked. Some wait for a queue first.';
COMMENT ON COLUMN outbox.parked_messages.relay IS 'The relay.';
COMMENT ON COLUMN outbox.parked_messages.id IS 'The id of the message in the log.';
COMMENT ON COLUMN outbox.parked_messages.message_id IS 'The id by which consumers know it.';
COMMENT ON COLUMN outbox.parked_messages.topic IS 'The topic.';
COMMENT ON COLUMN outbox.parked_messages.key IS 'The key.';
COMMENT ON COLUMN outbox.parked_messages.payload IS 'What it says.';
COMMENT ON COLUMN outbox.parked_messages.headers IS 'What else it says.';
COMMENT ON COLUMN outbox.parked_messages.workflow_id IS 'The workflow that it is about.';
COMMENT ON COLUMN outbox.parked_messages.created_at IS 'When it was written.';
COMMENT ON COLUMN outbox.parked_messages.reason IS 'Why it could not be sent.';
COMMENT ON COLUMN outbox.parked_messages.retry IS 'Set it to have it sent again.';
COMMENT ON COLUMN outbox.parked_messages.parked_at IS 'When it was parked.';
COMMENT ON COLUMN outbox.parked_messages.waits_until IS 'Until when the relay tries it again by itself; null: no longer.';
COMMENT ON COLUMN outbox.parked_messages.routing_key IS 'The routing key that no queue took.';

COMMENT ON TABLE outbox.inbox IS 'The ids of the messages that each consumer has handled.';
COMMENT ON COLUMN outbox.inbox.consumer IS 'The consumer.';
COMMENT ON COLUMN outbox.inbox.message_id IS 'The id of the message, a UUIDv7.';
COMMENT ON COLUMN outbox.inbox.received_at IS 'When it was recorded.';

COMMENT ON TABLE outbox.parked_deliveries IS
    'Deliveries that a consumer could not handle. They wait for a person: outbox parked.';
COMMENT ON COLUMN outbox.parked_deliveries.id IS 'Its number.';
COMMENT ON COLUMN outbox.parked_deliveries.consumer IS 'The consumer.';
COMMENT ON COLUMN outbox.parked_deliveries.queue IS 'The queue that it came from.';
COMMENT ON COLUMN outbox.parked_deliveries.message_id IS 'The id that it came with, if any.';
COMMENT ON COLUMN outbox.parked_deliveries.topic IS 'The topic that it came with, if any.';
COMMENT ON COLUMN outbox.parked_deliveries.body IS 'What came.';
COMMENT ON COLUMN outbox.parked_deliveries.headers IS 'The headers that came.';
COMMENT ON COLUMN outbox.parked_deliveries.reason IS 'Why it could not be handled.';
COMMENT ON COLUMN outbox.parked_deliveries.deliveries IS 'How often it was delivered.';
COMMENT ON COLUMN outbox.parked_deliveries.digest IS 'Internal: by which the same delivery is one row.';
COMMENT ON COLUMN outbox.parked_deliveries.retry IS 'Set it to have it handled again.';
COMMENT ON COLUMN outbox.parked_deliveries.parked_at IS 'When it was parked last.';

COMMENT ON TABLE outbox.delivery_attempts IS 'How many attempts a message has had that was not handled at once.';
COMMENT ON COLUMN outbox.delivery_attempts.consumer IS 'The consumer.';
COMMENT ON COLUMN outbox.delivery_attempts.message_id IS 'The message.';
COMMENT ON COLUMN outbox.delivery_attempts.attempts IS 'How many.';
COMMENT ON COLUMN outbox.delivery_attempts.at IS 'When the last one began.';

COMMENT ON TABLE outbox.schema_migrations IS 'What of the schema has been applied, and in which text.';
COMMENT ON COLUMN outbox.schema_migrations.name IS 'A numbered step, or a file that can be replaced.';
COMMENT ON COLUMN outbox.schema_migrations.hash IS 'The hash of that file''s text; null for a step.';
COMMENT ON COLUMN outbox.schema_migrations.applied_at IS 'When.';

-- The view's columns; the view itself has its comment beside it.
COMMENT ON COLUMN outbox.overview.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.overview.status IS 'The status.';
COMMENT ON COLUMN outbox.overview.stage IS 'The stage that takes it; null where none does.';
COMMENT ON COLUMN outbox.overview.workflows IS 'How many workflows stand in it.';
COMMENT ON COLUMN outbox.overview.ready IS 'Jobs that wait for a worker.';
COMMENT ON COLUMN outbox.overview.scheduled IS 'Jobs that are due later.';
COMMENT ON COLUMN outbox.overview.running IS 'Jobs that a worker has.';
COMMENT ON COLUMN outbox.overview.dead IS 'Jobs that have failed for good.';
COMMENT ON COLUMN outbox.overview.oldest_waiting IS
    'How long the job that is first in line has been due; null where none waits.';
COMMENT ON COLUMN outbox.overview.paused IS 'Whether the stage is paused.';

COMMENT ON COLUMN outbox.waiting.workflow_id IS 'The workflow.';
COMMENT ON COLUMN outbox.waiting.pipeline IS 'Its pipeline.';
COMMENT ON COLUMN outbox.waiting.entity_id IS 'What it is about.';
COMMENT ON COLUMN outbox.waiting.status IS 'The status that it waits in.';
COMMENT ON COLUMN outbox.waiting.kind IS
    'approval, signal, children, deadline (a time set by the pipeline) or timer (a job that is due later).';
COMMENT ON COLUMN outbox.waiting.waits_for IS 'What it waits for, in words: the question, the signal, how many children.';
COMMENT ON COLUMN outbox.waiting.since IS 'Since when it waits.';
COMMENT ON COLUMN outbox.waiting.until IS 'When its deadline passes, or its job is due; null: it waits without end.';
COMMENT ON COLUMN outbox.waiting.ended_by IS
    'What ends the wait, each with the status that it leads to. Empty for a timer, which leads to no other status.';
COMMENT ON COLUMN outbox.waiting.details IS 'What else there is to say about a wait of this kind.';

-- Internal tables and sequences.
COMMENT ON TABLE outbox.status_counts IS 'Internal: how many workflows stand in each status, as a log of differences.';
COMMENT ON TABLE outbox.orphans IS 'Internal: parents that have ended before all of their children.';
COMMENT ON TABLE outbox.partition_rates IS 'Internal: the next start time of each partition of a limited stage.';
COMMENT ON TABLE outbox.approval_links IS 'Internal: links by which one person answers one question, once.';
COMMENT ON TABLE outbox.waits IS 'Internal: workflows that wait for a signal or for their children.';
COMMENT ON TABLE outbox.relays IS 'Internal: one row for each relay''s name, with its place in the log. outbox status shows it.';
COMMENT ON SEQUENCE outbox.job_ids IS 'Internal: the order of claims.';
COMMENT ON SEQUENCE outbox.message_ids IS 'Internal: the order of messages, and which child of the ring holds each.';
COMMENT ON SEQUENCE outbox.inbox_floor IS 'Internal: the first day whose ids the inbox remembers.';

COMMENT ON TABLE outbox.resting IS 'Internal: workflows in a status that no stage takes and that is not final.';
COMMENT ON TABLE outbox.dead_counts IS 'Internal: how many dead jobs of each kind came and went, as a log of differences.';
COMMENT ON TABLE outbox.error_kinds IS 'Internal: how many dead jobs there are of each kind of error, but for what dead_counts adds.';
COMMENT ON TABLE outbox.status_flow IS 'Internal: how many workflows came into each status in each minute, but for what status_counts adds.';
COMMENT ON COLUMN outbox.dead_jobs.kind IS 'The kind of its error: its first line without ids and numbers.';
COMMENT ON COLUMN outbox.dead_jobs.place IS 'Internal: its place in lists.';

COMMENT ON COLUMN outbox.workflows.id IS 'Its id.';
COMMENT ON COLUMN outbox.workflows.pipeline IS 'Its pipeline.';
COMMENT ON COLUMN outbox.workflows.entity_id IS 'What it is about.';
COMMENT ON COLUMN outbox.workflows.current_status IS 'The status that it is in.';
COMMENT ON COLUMN outbox.workflows.metadata IS 'Its data.';
COMMENT ON COLUMN outbox.workflows.version IS 'How many changes it has had.';
COMMENT ON COLUMN outbox.workflows.created_at IS 'When it started.';
COMMENT ON COLUMN outbox.workflows.updated_at IS 'When its status or data last changed.';
COMMENT ON COLUMN outbox.workflows.state IS
    'finished, dead, running, ready, scheduled (its job is due later) or waiting (no stage takes its status).';
COMMENT ON COLUMN outbox.workflows.since IS 'When it came to its status.';
COMMENT ON COLUMN outbox.workflows.stage IS 'The stage of its job, live or dead.';
COMMENT ON COLUMN outbox.workflows.attempt IS 'How many attempts at this job were begun.';
COMMENT ON COLUMN outbox.workflows.error IS 'Why the last attempt failed.';
COMMENT ON COLUMN outbox.workflows.kind IS 'The kind of this error: its first line without ids and numbers.';
COMMENT ON COLUMN outbox.workflows.waits_for IS
    'approval, signal NAME, children, deadline, timer, worker or change (of its status, by anybody); null: dead or finished.';
COMMENT ON COLUMN outbox.workflows.assignee IS 'Who is asked, by its first open question.';
COMMENT ON COLUMN outbox.workflows.until IS 'When its wait ends by itself.';

COMMENT ON COLUMN outbox.errors.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.errors.stage IS 'The stage.';
COMMENT ON COLUMN outbox.errors.status IS 'The status that the workflows are in.';
COMMENT ON COLUMN outbox.errors.kind IS 'The kind of the error: its first line without ids and numbers.';
COMMENT ON COLUMN outbox.errors.jobs IS 'How many dead jobs there are.';
COMMENT ON COLUMN outbox.errors.first_at IS 'When one first died of it, since there has been one.';
COMMENT ON COLUMN outbox.errors.last_at IS 'When one last died of it.';

COMMENT ON COLUMN outbox.flow.pipeline IS 'The pipeline.';
COMMENT ON COLUMN outbox.flow.status IS 'The status.';
COMMENT ON COLUMN outbox.flow.minute IS 'When the minute began.';
COMMENT ON COLUMN outbox.flow.came IS 'How many workflows came into the status.';
COMMENT ON COLUMN outbox.flow.went IS 'How many left it.';
