-- Open questions, the one first that ends first, for an inbox that is read by deadline. Those without one come last.
CREATE INDEX approvals_open_by_deadline ON outbox.approvals (coalesce(deadline, 'infinity'), id) WHERE ended_at IS NULL;
