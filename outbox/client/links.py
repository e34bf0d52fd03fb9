"""Makes, opens and uses links by which one person answers one question, for example from a mail.

A link is a token: the id of its row and a signature (HMAC-SHA256) by a key that the database doesn't have. So it can't
be made up or changed, not even by a reader of the database. To open a link only reads, because mail scanners and
browsers fetch links. To use it decides, in the caller's transaction, which takes the link.
"""

from __future__ import annotations

import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, overload
from uuid import UUID

from .. import documents, settings, texts
from ..checks import MAX_NAME
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..documents import EntityId
from ..errors import LinkRefused, SettingsError
from .approvals import checked, checked_groups, question_id
from .delegations import check_end
from .execute import Steps, execute
from .pipelines import PipelineLike, name_of

SQL = statements.load("links")

SHORTEST_KEY = 32
"""Characters of a key: `openssl rand -hex 16` has as many, and 128 bits."""

_PURPOSE = b"outbox approval link 1\0"
"""What a signature is for: one that another program has made with the same key doesn't count here."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{64}")
"""A token: 16 bytes of an id and 32 of a signature, 6 bits to a character."""


@dataclass(frozen=True, slots=True)
class ApprovalLink:
    """What a link is for. `data` is what is shown, and `shown` its hash, which the answer should name.

    `decision` is what the link was used for, or None. `ended` says how the question ended, or is None.
    """

    pipeline: str
    entity_id: str
    question_id: UUID
    question: str
    options: tuple[str, ...]
    data: Any = field(repr=False)
    shown: str
    person: str
    until: datetime
    decision: str | None
    ended: str | None


@overload
def approval_link(
    conn: AsyncConn, pipeline: PipelineLike | str, entity_id: EntityId, *, person: str, until: datetime,
    question: UUID | str | None = None, groups: Collection[str] | None = None, keys: Sequence[str] | None = None,
) -> Coroutine[Any, Any, str]: ...  # fmt: skip
@overload
def approval_link(
    conn: SyncConn, pipeline: PipelineLike | str, entity_id: EntityId, *, person: str, until: datetime,
    question: UUID | str | None = None, groups: Collection[str] | None = None, keys: Sequence[str] | None = None,
) -> str: ...  # fmt: skip
def approval_link(
    conn: Any, pipeline: PipelineLike | str, entity_id: EntityId, *, person: str, until: datetime,
    question: UUID | str | None = None, groups: Collection[str] | None = None, keys: Sequence[str] | None = None,
) -> Any:  # fmt: skip
    """Makes a link for one person to an open question, in the caller's transaction. Returns its token.

    Await it on an async connection. Send the token in a URL of yours, to this person only: who has it answers in their
    name, once, until the end. `until` has a zone. `question` is needed if several are open. `groups` are the groups
    that the application knows the person to be in.

    `keys` (default: OUTBOX_LINK_KEYS) are secrets of at least 32 characters. The first one signs.

    The session's role must be one that may speak for others. Raises InvalidInput or SettingsError before any SQL; the
    database raises NoWorkflow, NothingAsked and SeveralAsked.
    """
    signing = _keys(keys)[0]
    entity_id = documents.entity(entity_id)
    texts.check_text(person, "person", MAX_NAME)
    check_end(until)
    params = {
        "pipeline": name_of(pipeline), "entity": entity_id, "person": person, "until": until,
        "question": question_id(question), "groups": checked_groups(groups),
    }  # fmt: skip
    return execute(conn, _make(params, signing))


@overload
def open_link(
    conn: AsyncConn, token: str, *, keys: Sequence[str] | None = None
) -> Coroutine[Any, Any, ApprovalLink]: ...
@overload
def open_link(conn: SyncConn, token: str, *, keys: Sequence[str] | None = None) -> ApprovalLink: ...
def open_link(conn: Any, token: str, *, keys: Sequence[str] | None = None) -> Any:
    """Returns what a link is for. It decides nothing and changes nothing, however often it is called.

    Await it on an async connection. `keys` (default: OUTBOX_LINK_KEYS): any of them may have signed. Raises
    LinkRefused if the token is not one of ours, if its time is over, or if the workflow is gone.
    """
    return execute(conn, _open(_read(token, _keys(keys))))


@overload
def use_link(
    conn: AsyncConn, token: str, decision: str, *, reason: str | None = None,
    pipeline: PipelineLike | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    keys: Sequence[str] | None = None,
) -> Coroutine[Any, Any, str]: ...  # fmt: skip
@overload
def use_link(
    conn: SyncConn, token: str, decision: str, *, reason: str | None = None,
    pipeline: PipelineLike | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    keys: Sequence[str] | None = None,
) -> str: ...  # fmt: skip
def use_link(
    conn: Any, token: str, decision: str, *, reason: str | None = None, pipeline: PipelineLike | None = None,
    edit: Any = None, about: Any = None, shown: str | None = None, keys: Sequence[str] | None = None,
) -> Any:  # fmt: skip
    """Answers the question of a link in the name of its person, in the caller's transaction, which takes the link.

    Await it on an async connection. Returns the status that the workflow then has. Call it for a POST only, never when
    a link is opened. Repeating the same answer is not an error. An answer that is refused leaves the link unused.

    `edit` needs `pipeline`, which validates it. The other parameters are those of `decide`. Raises LinkRefused if the
    token is not one of ours, was used for another answer, or its time is over; and what `decide` raises.
    """
    id_ = _read(token, _keys(keys))
    answer = checked(pipeline or "", decision, reason=reason, edit=edit, about=about, shown=shown)
    name = "" if pipeline is None else name_of(pipeline)
    return execute(conn, _use({"link": id_, "pipeline": name, **answer}))


def _keys(keys: Sequence[str] | None) -> Sequence[bytes]:
    """Returns the keys, the one that signs first. No error shows any of them."""
    if keys is None:
        keys = (settings.load().link_keys or "").split()
        if not keys:
            raise SettingsError("links need a key: set OUTBOX_LINK_KEYS, for example to `openssl rand -hex 32`")
    if isinstance(keys, str) or not keys or not all(isinstance(key, str) and len(key) >= SHORTEST_KEY for key in keys):
        raise SettingsError(f"keys of links (OUTBOX_LINK_KEYS) have at least {SHORTEST_KEY} characters each")
    return [key.encode() for key in keys]


def _sign(link: UUID, key: bytes) -> str:
    return urlsafe_b64encode(link.bytes + hmac.digest(key, _PURPOSE + link.bytes, sha256)).decode()


def _read(token: object, keys: Sequence[bytes]) -> UUID:
    """Returns the id of a link if one of the keys has signed its token."""
    if isinstance(token, str) and _TOKEN.fullmatch(token):
        link = UUID(bytes=urlsafe_b64decode(token)[:16])
        if any(hmac.compare_digest(_sign(link, key), token) for key in keys):
            return link
    raise LinkRefused("this link can't be used: it was not signed with our key, or is incomplete", why="forged")


def _make(link: dict[str, Any], key: bytes) -> Steps[str]:
    ((made,),) = yield SQL["link_make"], link
    return _sign(UUID(made), key)


def _open(link: UUID) -> Steps[ApprovalLink]:
    found = yield SQL["link_open"], {"link": link}
    if not found:
        raise LinkRefused("this link can't be used: what it was for is gone", why="unknown")
    ((told,),) = found
    pipeline, entity_id, id_, question, options, data, shown, person, until, decision, ended, over = json.loads(told)
    id_, until = UUID(id_), datetime.fromisoformat(until)
    if over:
        raise LinkRefused(
            "this link can't be used: its time is over", why="expired",
            pipeline=pipeline, entity_id=entity_id, question=id_, person=person,
        )  # fmt: skip
    return ApprovalLink(pipeline, entity_id, id_, question, tuple(options), data, shown, person, until, decision, ended)


def _use(answer: dict[str, Any]) -> Steps[str]:
    ((status,),) = yield SQL["link_use"], answer
    return str(status)
