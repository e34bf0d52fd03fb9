"""Sends signals to workflows, in the caller's own transaction, on a sync or an async connection.

All of it happens in the database function `signal`, which SQL clients can call, too. A plain `INSERT INTO
outbox.signals (pipeline, entity_id, name, payload)` does the same.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, overload

from .. import documents, texts
from ..checks import MAX_NAME
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..documents import EntityId
from .execute import Steps, execute
from .pipelines import PipelineLike, name_of

SQL = statements.load("signals")


@dataclass(frozen=True, slots=True)
class Signalled:
    """A sent signal. `status` is the workflow's status afterwards.

    `created` is False if a signal with this id was sent before; `taken` is True if a wait has taken the signal.
    `doubt` says, of one that is kept, that no workflow of the pipeline has waited for a signal of this name so far, and
    which name was probably meant. None if there is no doubt.
    """

    status: str
    created: bool
    taken: bool
    doubt: str | None = None


@overload
def signal(
    conn: AsyncConn, pipeline: PipelineLike | str, entity_id: EntityId, name: str, payload: Any = None,
    *, id: str | None = None, by: str | None = None,
) -> Coroutine[Any, Any, Signalled]: ...  # fmt: skip
@overload
def signal(
    conn: SyncConn, pipeline: PipelineLike | str, entity_id: EntityId, name: str, payload: Any = None,
    *, id: str | None = None, by: str | None = None,
) -> Signalled: ...  # fmt: skip
def signal(
    conn: Any, pipeline: PipelineLike | str, entity_id: EntityId, name: str, payload: Any = None, *,
    id: str | None = None, by: str | None = None,
) -> Any:  # fmt: skip
    """Sends the signal `name` to a workflow in the caller's transaction.

    Await it on an async connection. A workflow that waits for the signal moves in this transaction; otherwise the
    signal is kept until a wait of the workflow takes it. Each signal is taken once. `payload` is plain JSON or a
    pydantic model. `id` is the sender's own id, such as the number of a payment: a second signal with the same id has
    no effect. The history keeps `by` (default: the session's actor) for the change that the signal makes.

    Raises InvalidInput before any SQL if a value can't be stored. The database raises NoWorkflow, which ends the
    transaction.
    """
    entity_id = documents.entity(entity_id)
    texts.check_text(name, "name", MAX_NAME)
    texts.check_optional(id, "id", MAX_NAME)
    texts.check_optional(by, "by", MAX_NAME)
    text = None if payload is None else documents.dump_any(payload, "payload")
    sent = {"pipeline": name_of(pipeline), "entity": entity_id, "name": name, "payload": text, "id": id, "by": by}
    return execute(conn, _signal(sent))


def _signal(sent: dict[str, Any]) -> Steps[Signalled]:
    ((status, created, taken, doubt),) = yield SQL["signal_send"], sent
    return Signalled(status, created, taken, doubt)
