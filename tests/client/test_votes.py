"""Questions with approvers: an answer is a vote, each person counts once, and exactly the quorum decides."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import deployed, drain, status_of, value
from kit.waits import Order, orders, trail, waiting
from outbox import (
    DataChanged,
    InvalidInput,
    Question,
    QuorumNeeded,
    TooLate,
    VoteRefused,
    WaitForApproval,
    approve,
    decide,
    reject,
)

Conn = psycopg.Connection[Any]
OPTIONS = {"approve": "PAID", "reject": "REFUSED"}
TWO = WaitForApproval("Pay it?", options=OPTIONS, approvers={"finance": 2})
VOTES = "SELECT person, option, groups FROM outbox.approval_votes ORDER BY person"
FINANCE = ["finance"]


def test_a_quorum_decides_and_the_last_vote_moves_the_workflow(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    assert approve(conn, pipeline, "a", by="ann", groups=FINANCE) == "WAITING"
    assert conn.execute("SELECT votes, ended FROM outbox.approvals").fetchone() == (1, None)
    assert approve(conn, pipeline, "a", by="ben", groups=["finance", "law"], reason="fair") == "PAID"
    assert conn.execute(VOTES).fetchall() == [("ann", "approve", ["finance"]), ("ben", "approve", ["finance"])]
    assert trail(conn)[-1] == ("PAID", "ben", "fair")
    answer = "SELECT ended, decision, decided_by, votes FROM outbox.approvals"
    assert conn.execute(answer).fetchone() == ("decided", "approve", "ben", 2)


def test_a_person_counts_once_however_often_they_vote(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    for _ in range(3):
        assert approve(conn, pipeline, "a", by="ann", groups=FINANCE) == "WAITING"
    assert value(conn, "SELECT count(*) FROM outbox.approval_votes") == 1
    # Who has thought better of it votes again.
    assert reject(conn, pipeline, "a", by="ann", groups=FINANCE) == "WAITING"
    assert approve(conn, pipeline, "a", by="ben", groups=FINANCE) == "WAITING"
    assert reject(conn, pipeline, "a", by="cid", groups=FINANCE) == "REFUSED"
    # Both whose votes counted repeat them, and the third is too late with another one.
    assert reject(conn, pipeline, "a", by="ann", groups=FINANCE) == "REFUSED"
    assert approve(conn, pipeline, "a", by="ben", groups=FINANCE) == "REFUSED", "it was counted, and lost"
    with pytest.raises(TooLate):
        reject(conn, pipeline, "a", by="dan", groups=FINANCE)
    assert value(conn, "SELECT count(*) FROM outbox.approval_votes") == 3


def test_a_vote_with_another_edit_is_another_vote(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    assert approve(conn, pipeline, "a", by="ann", groups=FINANCE) == "WAITING"
    for _ in range(2):
        assert approve(conn, pipeline, "a", by="ann", groups=FINANCE, edit={"total": 7}) == "WAITING"
    assert value(conn, "SELECT metadata -> 'total' FROM outbox.workflow_states") == 7
    with pytest.raises(DataChanged):
        approve(conn, pipeline, "a", by="ann", groups=FINANCE, edit={"total": 8})
    shown = value(conn, "SELECT outbox.shown(metadata) FROM outbox.workflow_states")
    assert approve(conn, pipeline, "a", by="ben", groups=FINANCE, shown=shown) == "PAID"
    with pytest.raises(TooLate):
        approve(conn, pipeline, "a", by="ben", groups=FINANCE, edit={"total": 8})


def test_who_asks_never_counts(conn: Conn, dsn: str) -> None:
    conn.execute("SET outbox.actor = 'ann'")
    pipeline = waiting(conn, dsn, TWO)
    login = conn.info.user
    for asker in ("ann", login):
        with pytest.raises(VoteRefused, match="who asks doesn't answer") as refused:
            approve(conn, pipeline, "a", by=asker, groups=FINANCE)
        assert (refused.value.person, refused.value.approvers) == (asker, {"finance": 2})
    with pytest.raises(VoteRefused):
        approve(conn, pipeline, "a", groups=FINANCE)  # the session's actor
    assert value(conn, "SELECT count(*) FROM outbox.approval_votes") == 0


def test_the_handler_may_say_who_asks(conn: Conn, dsn: str) -> None:
    conn.execute("SET outbox.actor = 'clerk'")
    pipeline = waiting(conn, dsn, WaitForApproval("?", options=OPTIONS, approvers={"finance": 1}, asked_by="customer"))
    with pytest.raises(VoteRefused):
        approve(conn, pipeline, "a", by="customer", groups=FINANCE)
    assert approve(conn, pipeline, "a", by="clerk", groups=FINANCE) == "PAID"


def test_who_is_in_no_group_may_not_vote(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    for groups in ([], ["law"], None):
        with pytest.raises(VoteRefused, match=r"2 of finance") as refused:
            approve(conn, pipeline, "a", by="ann", groups=groups)
        assert refused.value.sqlstate == "OB022"
    with pytest.raises(InvalidInput, match="groups"):
        approve(conn, pipeline, "a", by="ann", groups="finance")
    assert value(conn, "SELECT count(*) FROM outbox.approval_votes") == 0


@pytest.mark.parametrize(
    ("voters", "enough"),
    [
        ({"ann": "fl"}, False),
        ({"ann": "fl", "ben": "fl"}, False),
        ({"ann": "fl", "ben": "f", "cid": "f"}, True),  # ann counts for the law
        ({"ann": "f", "ben": "f", "cid": "f"}, False),
        ({"ann": "l", "ben": "l", "cid": "l"}, False),
        ({"ann": "l", "ben": "f", "cid": "f"}, True),
        ({"ann": "fl", "ben": "fl", "cid": "fl"}, True),
        ({"ann": "l", "ben": "l", "cid": "fl"}, False),
    ],
)
def test_a_person_counts_for_one_of_their_groups(conn: Conn, dsn: str, voters: dict[str, str], enough: bool) -> None:
    wait = WaitForApproval("?", options=OPTIONS, approvers={"f": 2, "l": 1})
    pipeline = waiting(conn, dsn, wait)
    statuses = [approve(conn, pipeline, "a", by=who, groups=list(groups)) for who, groups in voters.items()]
    assert statuses == ["WAITING"] * (len(voters) - 1) + ["PAID" if enough else "WAITING"]


def test_one_approver_alone_may_give_some_answers(conn: Conn, dsn: str) -> None:
    wait = WaitForApproval("?", options=OPTIONS, approvers={"finance": 2}, alone={"reject"})
    pipeline = waiting(conn, dsn, wait)
    assert approve(conn, pipeline, "a", by="ann", groups=FINANCE) == "WAITING"
    with pytest.raises(VoteRefused):
        reject(conn, pipeline, "a", by="dan", groups=["law"])
    assert reject(conn, pipeline, "a", by="ben", groups=FINANCE) == "REFUSED"


def test_a_change_of_the_status_is_no_vote(conn: Conn, dsn: str, outbox: Outbox) -> None:
    waiting(conn, dsn, TWO)
    with pytest.raises(psycopg.Error, match="lead to PAID, because the question has approvers") as refused:
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'PAID'")
    assert refused.value.sqlstate == QuorumNeeded.sqlstate == "OB020"
    assert "lead to REFUSED, because the question has approvers" in outbox.fails(
        "set-status", "a", "REFUSED", "--reason", "no"
    )
    assert (status_of(conn, "a"), value(conn, "SELECT ended FROM outbox.approvals")) == ("WAITING", None)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'LATE'")
    assert value(conn, "SELECT ended FROM outbox.approvals") == "withdrawn", "any other status is open to all"


def test_an_update_of_many_is_refused_for_the_one_that_needs_votes(conn: Conn, dsn: str) -> None:
    def ask(run: Any) -> WaitForApproval[Order]:
        return TWO if run.entity_id == "b" else WaitForApproval("?", options=OPTIONS)

    pipeline = deployed(conn, orders(ask))
    pipeline.submit_many(conn, [(entity, Order()) for entity in "abc"])
    drain(pipeline, dsn)
    update = "UPDATE outbox.workflow_states SET current_status = 'PAID' WHERE entity_id = ANY (%s)"
    with pytest.raises(psycopg.Error, match='entity "b"'):
        conn.execute(update, [["a", "b", "c"]])
    conn.execute(update, [["a", "c"]])
    assert [status_of(conn, entity) for entity in "abc"] == ["PAID", "WAITING", "PAID"]


def test_no_setting_and_no_other_question_makes_up_for_votes(conn: Conn, dsn: str) -> None:
    asked = [
        Question("Money?", options=OPTIONS, approvers={"finance": 1}, name="money"),
        Question("Taste?", options=OPTIONS),
    ]
    pipeline = waiting(conn, dsn, WaitForApproval(questions=asked))
    plain = value(conn, "SELECT id FROM outbox.approvals WHERE approvers IS NULL")
    with pytest.raises(psycopg.Error, match="Money"):
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'PAID'")
    assert approve(conn, pipeline, "a", by="ann", question=plain) == "WAITING"
    with pytest.raises(psycopg.Error, match="Money"):
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'PAID'")
    with pytest.raises(VoteRefused):
        approve(conn, pipeline, "a", by="ann")
    assert approve(conn, pipeline, "a", by="ben", groups=FINANCE) == "PAID"


def test_a_vote_is_about_the_data_that_it_was_given_on(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    approve(conn, pipeline, "a", by="ann", groups=FINANCE)
    conn.execute("""UPDATE outbox.workflow_states SET metadata = '{"total": 9000}'""")
    with pytest.raises(DataChanged) as changed:
        approve(conn, pipeline, "a", by="ben", groups=FINANCE)
    now = changed.value.shown
    assert approve(conn, pipeline, "a", by="ben", groups=FINANCE, shown=now) == "WAITING", "ann has seen other data"
    assert approve(conn, pipeline, "a", by="ann", groups=FINANCE) == "WAITING", "the network repeats it"
    assert approve(conn, pipeline, "a", by="ann", groups=FINANCE, shown=now) == "PAID"


def test_a_vote_with_an_edit_changes_what_the_others_vote_on(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TWO)
    approve(conn, pipeline, "a", by="ann", groups=FINANCE)
    for _ in range(2):
        assert approve(conn, pipeline, "a", by="ben", groups=FINANCE, edit={"total": 1}) == "WAITING"
    assert value(conn, "SELECT metadata ->> 'total' FROM outbox.workflow_states") == "1"
    with pytest.raises(DataChanged) as changed:
        approve(conn, pipeline, "a", by="cid", groups=FINANCE)
    assert approve(conn, pipeline, "a", by="cid", groups=FINANCE, shown=changed.value.shown) == "PAID"
    assert value(conn, "SELECT edited ->> 'total' FROM outbox.approvals") == "1"


def test_what_a_question_is_about_is_voted_on_as_it_is_edited(conn: Conn, dsn: str) -> None:
    wait = WaitForApproval("?", options=OPTIONS, approvers={"finance": 2}, about={"sum": 1})
    pipeline = waiting(conn, dsn, wait)
    approve(conn, pipeline, "a", by="ann", groups=FINANCE)
    assert decide(conn, "orders", "a", "approve", by="ben", groups=FINANCE, about={"sum": 2}) == "WAITING"
    with pytest.raises(DataChanged) as changed:
        approve(conn, pipeline, "a", by="cid", groups=FINANCE)
    assert approve(conn, pipeline, "a", by="ann", groups=FINANCE, shown=changed.value.shown) == "PAID"


def test_of_many_who_vote_at_once_exactly_the_quorum_counts(conn: Conn, dsn: str, connect: Callable[..., Conn]) -> None:
    """200 calls of 100 people on 8 connections: 20 count, and all others are too late or repeat what has counted."""
    pipeline = waiting(conn, dsn, WaitForApproval("?", options=OPTIONS, approvers={"all": 20}))
    conns = [connect() for _ in range(8)]

    def votes(n: int) -> list[tuple[str, str]]:
        told = []
        for person in range(n, 200, len(conns)):
            try:
                by = f"p{person % 100}"
                told.append((by, approve(conns[n], pipeline, "a", by=by, groups=["all"])))
            except TooLate:
                told.append((by, "late"))
        return told

    with ThreadPoolExecutor(len(conns)) as pool:
        told = [each for some in pool.map(votes, range(len(conns))) for each in some]
    counted = {person for (person,) in conn.execute("SELECT person FROM outbox.approval_votes").fetchall()}
    assert len(counted) == value(conn, "SELECT votes FROM outbox.approvals") == 20
    assert {by for by, status in told if status != "late"} == counted, "who was told so counts, and no other"
    assert len([by for by, status in told if status == "PAID" and by == trail(conn)[-1][1]]) >= 1
    assert [status for status, *_ in trail(conn)] == ["NEW", "WAITING", "PAID"]


def test_the_command_line_counts_votes(conn: Conn, dsn: str, outbox: Outbox) -> None:
    waiting(conn, dsn, TWO)
    said = outbox("approve", "a", "--by", "ann", "--group", "finance").out.splitlines()
    assert said[0] == "a: approve by ann -> WAITING"
    assert said[1].startswith(
        'It waits for 2 of finance to answer "Pay it?" (approve, reject; votes so far: 1), since '
    )
    assert "approve by ann; needs 2 of finance" in " ".join(outbox("show", "a").out.split())
    table = " ".join(outbox("approvals").out.split())
    assert "approve by ann" in table
    (row,) = outbox("approvals", "--json").json
    assert row["approvers"] == {"finance": 2}
    assert row["votes"] == [
        {"person": "ann", "cast_by": "ann", "option": "approve", "groups": ["finance"], "counts": True}
    ]
    assert "they are in none of the groups that may" in outbox.fails("approve", "a", "--by", "dan")
    outbox("approve", "a", "--by", "ben", "--group", "finance")
    assert status_of(conn, "a") == "PAID"
