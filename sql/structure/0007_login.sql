-- Who has really acted: the login role, beside the name that it goes by. What was there before has none.
ALTER TABLE outbox.state_changes ADD COLUMN login text;
ALTER TABLE outbox.state_changes ALTER COLUMN login SET DEFAULT session_user;
ALTER TABLE outbox.signals ADD COLUMN login text;
ALTER TABLE outbox.signals ALTER COLUMN login SET DEFAULT session_user;
ALTER TABLE outbox.pauses ADD COLUMN login text;
ALTER TABLE outbox.pauses ALTER COLUMN login SET DEFAULT session_user;
-- Of a question, it is the login of the session that has ended it.
ALTER TABLE outbox.approvals ADD COLUMN login text;

-- A table without a key can't be changed while a publication has it, and FOR ALL TABLES has all.
ALTER TABLE outbox.status_counts REPLICA IDENTITY FULL;
ALTER TABLE outbox.messages_0 REPLICA IDENTITY FULL;
ALTER TABLE outbox.messages_1 REPLICA IDENTITY FULL;
ALTER TABLE outbox.messages_2 REPLICA IDENTITY FULL;
ALTER TABLE outbox.messages_3 REPLICA IDENTITY FULL;
