"""The command line of waits: the inbox of questions, decisions, signals."""

from __future__ import annotations

import getpass
from typing import Any

import psycopg
import pytest

from apps.cli import orders
from kit.commands import Outbox
from kit.pipelines import deployed, drain, status_of, value

Conn = psycopg.Connection[Any]
APP = "apps.cli:orders"


@pytest.fixture
def outbox(conn: Conn, dsn: str) -> Outbox:
    """`big` waits for a person, `small` for its payment, `new` has not begun."""
    deployed(conn, orders)
    orders.submit_many(conn, [("big", {"total": 100}), ("small", {"total": 1})])
    drain(orders, dsn)
    orders.submit(conn, "new", {"total": 1})
    return Outbox(dsn)


def test_the_inbox_lists_what_is_asked(outbox: Outbox) -> None:
    (asked,) = outbox("approvals", "--json").json
    assert (asked["entity_id"], asked["question"], asked["assignee"]) == ("big", "Ship it?", "sarah")
    assert (asked["data"], asked["changed"]) == ({"total": 100}, False)
    table = outbox("approvals").out
    for text in ("big", "Ship it?", "approve, reject", "sarah", "3d", "outbox approve ENTITY"):
        assert text in table
    assert outbox("approvals", "--assignee", "tom", "--json").json == []
    assert outbox("approvals", "--assignee", "tom").out == "nothing waits for an approval\n"


@pytest.mark.parametrize(
    "command", [("approvals",), ("dead",), ("dead", "--kinds"), ("list",), ("list", "--status", "WAITING", "--json")]
)
def test_a_list_that_is_empty_because_a_name_is_misspelt_says_so(outbox: Outbox, command: tuple[str, ...]) -> None:
    said = outbox.fails(*command, "--pipeline", "order")
    assert said == 'outbox: pipeline "order" is not deployed here; deployed are orders'


def test_a_list_of_a_status_that_there_is_not_says_which_there_are(outbox: Outbox) -> None:
    said = outbox.fails("list", "--status", "WAITNG")
    assert said.startswith('outbox: the deployed pipelines have no status "WAITNG", but ')
    assert "WAITING" in said
    assert 'pipeline "orders" has no status "WAITNG", but ' in outbox.fails(
        "list", "--status", "WAITNG", "--pipeline", "orders"
    )
    assert outbox("list", "--status", "PAID").out == "no such workflows\n"


@pytest.mark.parametrize(("command", "status"), [(("approve",), "APPROVED"), (("reject",), "REJECTED")])
def test_a_decision_says_what_it_did(outbox: Outbox, conn: Conn, command: tuple[str, ...], status: str) -> None:
    said = outbox(*command, "big", "--by", "sarah", "--reason", "it is right").out
    assert said == f"big: {command[0]} by sarah -> {status}\n"
    assert value(conn, "SELECT actor || ': ' || reason FROM outbox.state_changes ORDER BY id DESC LIMIT 1") == (
        "sarah: it is right"
    )
    late = outbox.fails("decide", "big", "approve" if status == "REJECTED" else "reject", "--by", "tom")
    assert "too late, it was decided" in late
    assert "by sarah at 20" in late
    shown = outbox("show", "big", "--json").json
    assert (shown["approvals"][0]["decision"], shown["approvals"][0]["decided_by"]) == (command[0], "sarah")
    assert "Ship it?" in outbox("show", "big").out


def test_who_decides_is_the_user_unless_said(outbox: Outbox, conn: Conn) -> None:
    outbox("approve", "big")
    assert value(conn, "SELECT decided_by FROM outbox.approvals") == getpass.getuser()


def test_wrong_decisions_say_what_would_be_right(outbox: Outbox, conn: Conn) -> None:
    assert "Its options: approve, reject" in outbox.fails("decide", "big", "maybe")
    assert "nothing is asked" in outbox.fails("approve", "new")
    assert "no workflow of entity" in outbox.fails("approve", "nobody")
    assert outbox("approve", "big", "--edit", "{", code=2).err.splitlines()[-1].startswith("Error: --edit is not JSON")
    assert "--app" in outbox.fails("approve", "big", "--edit", "{}")
    assert "total" in outbox.fails("approve", "big", "--edit", '{"total": "x"}', "--app", APP)
    assert status_of(conn, "big") == "WAITING"


def test_an_edit_is_validated_by_the_application(outbox: Outbox, conn: Conn) -> None:
    outbox("approve", "big", "--edit", '{"total": 99}', "--app", APP)
    assert value(conn, "SELECT metadata FROM outbox.workflow_states WHERE entity_id = 'big'") == {"total": 99}


def test_data_that_has_changed_is_decided_by_its_hash(outbox: Outbox, conn: Conn) -> None:
    conn.execute("""UPDATE outbox.workflow_states SET metadata = '{"total": 50}' WHERE entity_id = 'big'""")
    (asked,) = outbox("approvals", "--json").json
    assert asked["changed"] is True
    assert f"changed since, now {asked['shown'][:10]}" in outbox("approvals").out.replace("\n", "")
    assert asked["shown"] in outbox.fails("approve", "big")
    outbox("approve", "big", "--shown", asked["shown"])
    assert status_of(conn, "big") == "APPROVED"


def test_a_signal_says_what_became_of_it(outbox: Outbox, conn: Conn, dsn: str) -> None:
    said = outbox("signal", "small", "payment", '{"sum": 1}', "--id", "p1").out
    assert said == "small: payment taken; it is in PAID\n"
    again = outbox("signal", "small", "payment", '{"sum": 1}', "--id", "p1").out
    assert again == "small: payment was sent before, taken; it is in PAID\n"
    early = outbox("signal", "new", "payment").out
    assert early == "new: payment kept until it is waited for; it is in NEW\n"
    drain(orders, dsn)
    assert status_of(conn, "new") == "PAID"
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'REJECTED' WHERE entity_id = 'big'")
    late = outbox("signal", "big", "payment").out
    assert late == "big: payment too late, the workflow has ended; it is in REJECTED\n"
    for payload, words in (
        ("[" * 60_000, "PAYLOAD is nested too deeply"),
        ('{"a": {"b": 1, "b": 2}}', "PAYLOAD: has the same key twice in one object"),
        ("[NaN]", "PAYLOAD: NaN is not JSON"),
        ("[12345678901234567.89]", "PAYLOAD: has a number that would lose digits"),
    ):
        assert outbox("signal", "new", "payment", payload, code=2).err.splitlines()[-1].startswith(f"Error: {words}")
    assert (
        outbox("signal", "new", "payment", "nonsense", code=2).err.splitlines()[-1].startswith("Error: PAYLOAD is not")
    )
    assert "no workflow" in outbox.fails("signal", "nobody", "payment")
    shown = outbox("show", "small", "--json").json
    assert [(row["name"], row["signal_id"]) for row in shown["signals"]] == [("payment", "p1")]
    assert "payment" in outbox("show", "small").out


def test_show_says_what_is_waited_for(outbox: Outbox) -> None:
    assert outbox("show", "small", "--json").json["waits_for"]["signal"] == "payment"
    job = outbox("show", "big", "--json").json["job"]
    assert (job["state"], job["on_deadline"], job["stage"]) == ("waiting", "REJECTED", None)
