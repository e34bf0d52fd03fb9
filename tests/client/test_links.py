"""Links: signed, for one person and one question, used once; to open one decides nothing."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, drain, status_of, value
from kit.waits import QUESTION, Order, orders, trail, waiting
from outbox import (
    DataChanged,
    InvalidInput,
    LinkRefused,
    NothingAsked,
    Pipeline,
    SettingsError,
    TooLate,
    VoteRefused,
    WaitForApproval,
    approval_link,
    approve,
    open_link,
    use_link,
)

Conn = psycopg.Connection[Any]
OLD, NEW = "o" * 32, "n" * 32
TWO = WaitForApproval("Pay it?", options={"approve": "PAID", "reject": "REFUSED"}, approvers={"finance": 2})


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_LINK_KEYS", NEW)


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def link(conn: Conn, pipeline: Pipeline[Order], person: str = "ann", **more: Any) -> str:
    return approval_link(conn, pipeline, "a", person=person, until=soon(), **more)


def test_a_used_link_takes_no_other_edit(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    token = link(conn, pipeline)
    for _ in range(2):
        assert use_link(conn, token, "approve", pipeline=pipeline, edit={"total": 7}) == "PAID"
    with pytest.raises(LinkRefused) as refused:
        use_link(conn, token, "approve", pipeline=pipeline, edit={"total": 8})
    assert refused.value.why == "used"
    assert value(conn, "SELECT metadata -> 'total' FROM outbox.workflow_states") == 7


def test_a_link_says_what_it_is_for_and_opening_it_changes_nothing(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    token = link(conn, pipeline)
    before = conn.execute("SELECT l, a FROM outbox.approval_links AS l, outbox.approvals AS a").fetchall()
    for _ in range(3):  # a mail scanner, a preview, a person
        opened = open_link(conn, token)
    assert conn.execute("SELECT l, a FROM outbox.approval_links AS l, outbox.approvals AS a").fetchall() == before
    assert (opened.pipeline, opened.entity_id, opened.question, opened.person) == ("orders", "a", "Pay it?", "ann")
    assert (set(opened.options), opened.decision, opened.ended) == ({"approve", "reject"}, None, None)
    assert (opened.data["total"], "total" in repr(opened)) == (5, False)
    with conn.transaction():
        conn.execute("SET TRANSACTION READ ONLY")
        assert open_link(conn, token) == opened


def test_a_link_is_used_once_in_the_name_of_its_person(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    token = link(conn, pipeline)
    opened = open_link(conn, token)
    assert use_link(conn, token, "approve", reason="fine", shown=opened.shown) == "PAID"
    assert trail(conn)[-1] == ("PAID", "ann", "fine")
    assert conn.execute("SELECT decided_by, login FROM outbox.approvals").fetchone() == ("ann", conn.info.user)
    assert open_link(conn, token).decision == "approve"
    assert use_link(conn, token, "approve") == "PAID", "a form that is sent again"
    with pytest.raises(LinkRefused, match="it was used to answer approve") as refused:
        use_link(conn, token, "reject")
    assert (refused.value.why, refused.value.person, refused.value.question) == ("used", "ann", opened.question_id)
    assert len(trail(conn)) == 3


def test_a_link_is_one_vote_of_its_person(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    tokens = [link(conn, pipeline, person, groups=["finance"]) for person in ("ann", "ann", "ben")]
    assert [use_link(conn, token, "approve") for token in tokens] == ["WAITING", "WAITING", "PAID"]
    assert value(conn, "SELECT count(*) FROM outbox.approval_votes") == 2


def test_a_refused_answer_leaves_the_link_unused(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    token = link(conn, pipeline)
    seen = open_link(conn, token).shown
    conn.execute("""UPDATE outbox.workflow_states SET metadata = '{"total": 6}'""")
    with pytest.raises(DataChanged):
        use_link(conn, token, "approve", shown=seen)
    with pytest.raises(psycopg.Error, match="is not an option"):
        use_link(conn, token, "perhaps", shown=open_link(conn, token).shown)
    with pytest.raises(InvalidInput, match="give the Pipeline"):
        use_link(conn, token, "approve", edit={"total": 7})
    assert open_link(conn, token).decision is None
    shown = open_link(conn, token).shown
    assert use_link(conn, token, "approve", shown=shown, pipeline=pipeline, edit={"total": 7}) == "PAID"


def test_a_link_for_who_may_not_vote_or_comes_too_late_decides_nothing(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    strangers, late = link(conn, pipeline, "eve"), link(conn, pipeline, "ann", groups=["finance"])
    with pytest.raises(VoteRefused):
        use_link(conn, strangers, "approve")
    for by in ("ben", "cid"):
        approve(conn, pipeline, "a", by=by, groups=["finance"])
    with pytest.raises(TooLate):
        use_link(conn, late, "reject")
    assert open_link(conn, late).ended == "decided"
    with pytest.raises(NothingAsked, match="is not open any more"):
        link(conn, pipeline)


def test_a_token_that_we_did_not_sign_is_refused(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    token = link(conn, pipeline)
    raw = bytearray(urlsafe_b64decode(token))
    for n in (0, 15, 16, 47):
        broken = bytes(raw[:n] + bytes([raw[n] ^ 1]) + raw[n + 1 :])
        for call in (open_link, lambda conn, token: use_link(conn, token, "approve")):
            with pytest.raises(LinkRefused, match="not signed with our key") as refused:
                call(conn, urlsafe_b64encode(broken).decode())
            assert refused.value.why == "forged"
    for odd in ("", token[:-1], token + "A", token + "\n", None, 7, token.encode()):
        with pytest.raises(LinkRefused):
            open_link(conn, odd)  # type: ignore[arg-type]
    assert status_of(conn, "a") == "WAITING"


def test_keys_are_changed_by_putting_a_new_one_first(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    old = link(conn, pipeline, keys=[OLD])
    with pytest.raises(LinkRefused):
        open_link(conn, old)
    monkeypatch.setenv("OUTBOX_LINK_KEYS", f"{NEW} {OLD}")
    assert open_link(conn, old).person == open_link(conn, link(conn, pipeline), keys=[NEW]).person == "ann"
    for keys in ("", "short", f"{NEW} short"):
        monkeypatch.setenv("OUTBOX_LINK_KEYS", keys)
        with pytest.raises(SettingsError, match="OUTBOX_LINK_KEYS") as refused:
            open_link(conn, old)
        assert "short" not in str(refused.value)
        assert NEW not in str(refused.value)


def test_a_link_ends(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    token = link(conn, pipeline)
    conn.execute("UPDATE outbox.approval_links SET until = now() - interval '1 second'")
    for call in (open_link, lambda conn, token: use_link(conn, token, "approve")):
        with pytest.raises(LinkRefused) as refused:
            call(conn, token)
        assert (refused.value.why, refused.value.person) == ("expired", "ann")
    conn.execute("DELETE FROM outbox.workflow_states")
    for call in (open_link, lambda conn, token: use_link(conn, token, "approve")):
        with pytest.raises(LinkRefused) as refused:
            call(conn, token)
        assert refused.value.why == "unknown"
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        conn.execute("SELECT outbox.approval_link('orders', 'a', 'ann', now())")
    for until in (datetime(2100, 1, 1), datetime.now(UTC)):
        with pytest.raises(InvalidInput, match="until"):
            approval_link(conn, pipeline, "a", person="ann", until=until)


def test_a_link_that_many_use_at_once_counts_once(conn: Conn, dsn: str, connect: Callable[..., Conn]) -> None:
    pipeline = waiting(conn, dsn, TWO)
    token = link(conn, pipeline, groups=["finance"])
    conns = [connect() for _ in range(6)]

    def use(n: int) -> str:
        try:
            return use_link(conns[n], token, ("approve", "reject")[n % 2])
        except LinkRefused as error:
            return str(error.why)

    with ThreadPoolExecutor(len(conns)) as pool:
        assert sorted(pool.map(use, range(len(conns)))) == ["WAITING"] * 3 + ["used"] * 3
    assert value(conn, "SELECT count(*) FROM outbox.approval_votes") == 1


def test_a_link_does_not_answer_the_next_question(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW")
    pipeline.stage("ask", on="NEW", to="WAITING")(
        lambda run: WaitForApproval("?", options={"again": "NEW", "yes": "PAID"})
    )
    pipeline.allow("WAITING", to={"NEW", "PAID"})
    deployed(conn, pipeline).submit(conn, "a", Order())
    drain(pipeline, dsn)
    token, other = link(conn, pipeline), link(conn, pipeline, "ben")
    assert use_link(conn, token, "again") == "NEW"
    drain(pipeline, dsn)
    assert use_link(conn, token, "again") == "WAITING", "repeated"
    with pytest.raises(TooLate):
        use_link(conn, other, "yes")
    assert value(conn, "SELECT count(*) FROM outbox.approvals WHERE ended_at IS NULL") == 1


def test_on_an_async_connection_it_is_the_same(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(QUESTION))
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)

    async def all_three() -> str:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            token = await approval_link(other, pipeline, "a", person="ann", until=soon())
            assert (await open_link(other, token)).person == "ann"
            return await use_link(other, token, "approve")

    assert asyncio.run(all_three()) == "PAID"
