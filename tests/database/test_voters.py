"""Who may answer, by the roles of the database: a person is a login, and only a spokesman names another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, drain, status_of, value
from kit.waits import QUESTION, Order, orders, waiting
from outbox import Pipeline, VoteRefused, WaitForApproval, approve, reject

Conn = psycopg.Connection[Any]
Session = Callable[[str], Conn]
TWO = WaitForApproval("Pay it?", options={"approve": "PAID", "reject": "REFUSED"}, approvers={"login_finance": 2})
ROLES = """
CREATE ROLE login_finance; CREATE ROLE login_chiefs IN ROLE login_finance;
CREATE ROLE login_ann LOGIN IN ROLE outbox_operator, login_finance;
CREATE ROLE login_ben LOGIN IN ROLE outbox_operator, login_chiefs;
CREATE ROLE login_cid LOGIN IN ROLE outbox_operator;
CREATE ROLE login_web LOGIN IN ROLE outbox_operator, outbox_spokesman;
CREATE ROLE login_root LOGIN SUPERUSER;
CREATE ROLE login_maker LOGIN CREATEROLE IN ROLE outbox_operator;
"""
VOTES = "SELECT person, cast_by, login FROM outbox.approval_votes ORDER BY person"


@pytest.fixture
def session(as_: Session, admin: Conn) -> Session:
    """Connects as a login: ann and ben are in finance, cid is not, and web speaks for others."""
    admin.execute(ROLES)
    return as_


@pytest.fixture
def asked(conn: Conn, dsn: str) -> Pipeline[Order]:
    return waiting(conn, dsn, TWO)


def test_a_person_is_their_login_and_groups_are_roles(session: Session, conn: Conn, asked: Pipeline[Order]) -> None:
    ann, ben = session("ann"), session("ben")
    ann.execute("SET outbox.actor = 'login_ben'")  # what she says she is doesn't count
    ben.execute("SET ROLE outbox_operator")
    assert approve(ann, asked, "a") == "WAITING"
    assert approve(ann, asked, "a", by="login_ann") == "WAITING"
    assert approve(ben, asked, "a") == "PAID"
    assert conn.execute(VOTES).fetchall() == [(f"login_{name}",) * 3 for name in ("ann", "ben")]
    assert value(conn, "SELECT decided_by FROM outbox.approvals") == "login_ben"


def test_only_a_spokesman_names_another_person_and_their_groups(
    session: Session, conn: Conn, asked: Pipeline[Order]
) -> None:
    ann = session("ann")
    for name in ("login_ben", "sarah", "login_finance"):
        with pytest.raises(VoteRefused, match="may not speak for others"):
            approve(ann, asked, "a", by=name)
    with pytest.raises(VoteRefused, match="may not say which groups they are in"):
        approve(session("cid"), asked, "a", groups=["login_finance"])
    web = session("web")
    assert approve(web, asked, "a", by="sarah", groups=["login_finance"]) == "WAITING"
    assert approve(web, asked, "a", by="sarah", groups=["login_finance"]) == "WAITING"
    web.execute("SET outbox.actor = 'login_ann'")
    assert approve(web, asked, "a") == "PAID"
    assert conn.execute(VOTES).fetchall() == [("login_ann", "login_ann", "login_web"), ("sarah", "sarah", "login_web")]


def test_ann_is_one_person_whichever_way_she_comes(session: Session, conn: Conn, asked: Pipeline[Order]) -> None:
    assert approve(session("ann"), asked, "a") == "WAITING"
    assert approve(session("web"), asked, "a", by="login_ann") == "WAITING"
    assert value(conn, "SELECT count(*) FROM outbox.approval_votes") == 1


@pytest.mark.parametrize("name", ["cid", "root", "web"])
def test_who_is_not_in_the_group_may_not_vote(session: Session, conn: Conn, asked: Pipeline[Order], name: str) -> None:
    """A superuser is in no group by that."""
    with pytest.raises(VoteRefused):
        approve(session(name), asked, "a")
    assert status_of(conn, "a") == "WAITING"


def test_who_has_made_a_role_is_not_in_it(session: Session, conn: Conn, dsn: str) -> None:
    """Since version 16, Postgres grants it to them, so that they may grant it to others."""
    maker = session("maker")
    maker.execute("CREATE ROLE login_law")
    pipeline = waiting(conn, dsn, WaitForApproval("?", options={"approve": "PAID"}, approvers={"login_law": 1}))
    with pytest.raises(VoteRefused):
        approve(maker, pipeline, "a")


def test_a_name_that_is_a_role_without_login_is_in_no_group(session: Session, asked: Pipeline[Order]) -> None:
    for name in ("login_finance", "login_chiefs"):
        with pytest.raises(VoteRefused):
            approve(session("web"), asked, "a", by=name)


def test_one_login_may_be_asked_by_its_name(session: Session, conn: Conn, dsn: str) -> None:
    wait = WaitForApproval("?", options={"approve": "PAID"}, approvers={"login_cid": 1})
    pipeline = waiting(conn, dsn, wait)
    with pytest.raises(VoteRefused):
        approve(session("ann"), pipeline, "a")
    assert approve(session("cid"), pipeline, "a") == "PAID"


def test_who_has_submitted_does_not_vote_whatever_name_they_gave(
    session: Session, admin: Conn, conn: Conn, dsn: str
) -> None:
    admin.execute("GRANT outbox_submitter TO login_ann")
    pipeline = deployed(conn, orders(TWO))
    ann = session("ann")
    ann.execute("SET outbox.actor = 'somebody'")
    ann.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('orders', 'a', '{}')")
    drain(pipeline, dsn)
    assert conn.execute("SELECT asked_by, asked_login FROM outbox.approvals").fetchone() == ("somebody", "login_ann")
    with pytest.raises(VoteRefused, match="who asks doesn't answer"):
        approve(session("ann"), pipeline, "a")
    with pytest.raises(VoteRefused, match="who asks doesn't answer"):
        approve(session("web"), pipeline, "a", by="login_ann", groups=["login_finance"])


def test_a_plain_update_by_an_operator_is_refused_whatever_it_sets(
    session: Session, conn: Conn, asked: Pipeline[Order]
) -> None:
    ann = session("ann")
    ann.execute("SET outbox.decision = '(deadline)'; SET outbox.worker = '1'")
    with pytest.raises(psycopg.Error, match="because the question has approvers"):
        ann.execute("UPDATE outbox.workflow_states SET current_status = 'PAID'")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ann.execute("UPDATE outbox.approvals SET decision = 'approve'")
    for statement in (
        "INSERT INTO outbox.approval_votes VALUES (NULL)",
        "DELETE FROM outbox.approval_votes",
        "INSERT INTO outbox.delegations VALUES (NULL)",
        "SELECT outbox.approval_link('orders', 'a', 'login_ben', now() + interval '1 day')",
        "SELECT outbox.link_use(NULL, 'approve')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ann.execute(statement.encode())
    assert status_of(conn, "a") == "WAITING"


def test_people_delegate_for_themselves_and_a_spokesman_for_others(
    session: Session, conn: Conn, asked: Pipeline[Order]
) -> None:
    ann, cid, web = session("ann"), session("cid"), session("web")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="may not speak for others"):
        cid.execute("SELECT outbox.delegate('login_cid', now() + interval '1 day', 'login_ann')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="may not speak for others"):
        cid.execute("SELECT outbox.delegate('sarah', now() + interval '1 day', NULL, ARRAY['login_finance'])")
    ann.execute("SELECT outbox.delegate('login_cid', now() + interval '1 day')")
    assert approve(cid, asked, "a") == "WAITING"
    web.execute("SELECT outbox.delegate('sarah', now() + interval '1 day', 'login_ben')")
    assert approve(web, asked, "a", by="sarah") == "PAID"
    assert conn.execute(VOTES).fetchall() == [
        ("login_ann", "login_cid", "login_cid"), ("login_ben", "sarah", "login_web"),
    ]  # fmt: skip
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        cid.execute("SELECT outbox.delegation_end('login_cid', 'login_ann')")
    assert ann.execute("SELECT outbox.delegation_end('login_cid')").fetchone() == (True,)


def test_a_question_without_approvers_takes_any_name_as_before(session: Session, conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    assert reject(session("cid"), pipeline, "a", by="sarah") == "REFUSED"
    assert conn.execute("SELECT decided_by, login FROM outbox.approvals").fetchone() == ("sarah", "login_cid")
