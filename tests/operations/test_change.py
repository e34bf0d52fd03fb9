"""What a person does: sets a status, retries what is dead or parked, forgets a relay; by the command line."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from apps.cli import posts
from kit.commands import Outbox
from kit.pipelines import Post, drain, status_of, value
from kit.shop import AHEAD, DELIVERY, PARKED, RELAY, rows_of

Conn = psycopg.Connection[Any]


def test_set_status_moves_a_workflow_and_history_says_who_and_why(outbox: Outbox, shop: Conn) -> None:
    done = outbox("set-status", "review", "APPROVED", "--reason", "looks fine", "--by", "sarah")
    assert done.out == "review: WAITING_FOR_REVIEW -> APPROVED\n"
    last = outbox("show", "review", "--json").json["history"][-1]
    assert (last["from_status"], last["to_status"]) == ("WAITING_FOR_REVIEW", "APPROVED")
    assert (last["actor"], last["reason"]) == ("sarah", "looks fine")
    assert outbox("show", "review", "--json").json["job"]["stage"] == "act", "the next stage has its job"


def test_set_status_is_by_the_user_of_the_machine_unless_another_is_named(outbox: Outbox, shop: Conn) -> None:
    outbox("set-status", "review", "REJECTED", env={"LOGNAME": "karl"})
    last = outbox("show", "review", "--json").json["history"][-1]
    assert (last["actor"], last["reason"]) == ("karl", None)


def test_set_status_to_the_same_says_so_and_changes_nothing(outbox: Outbox, shop: Conn) -> None:
    assert outbox("set-status", "review", "WAITING_FOR_REVIEW").out == "review is already in WAITING_FOR_REVIEW\n"
    assert len(outbox("show", "review", "--json").json["history"]) == 3


@pytest.mark.parametrize("to", ["COMPLETED", "NO_SUCH_STATUS", "", "'; DROP TABLE outbox.jobs --"])
def test_an_illegal_change_names_pipeline_entity_and_both_statuses(outbox: Outbox, shop: Conn, to: str) -> None:
    line = outbox.fails("set-status", "review", to)
    for words in ('"posts"', '"review"', '"WAITING_FOR_REVIEW"', f'"{to}"'):
        assert words in line
    assert status_of(shop, "review") == "WAITING_FOR_REVIEW"


def test_retry_makes_one_job_again(outbox: Outbox, shop: Conn) -> None:
    assert outbox("retry", "broken").out == "broken runs again\n"
    job = outbox("show", "broken", "--json").json["job"]
    assert (job["stage"], job["attempt"], job["state"]) == ("decide", 0, "ready")
    assert outbox("dead", "--json").json == []


@pytest.mark.parametrize("entity", ["new", "review"])
def test_retry_of_what_is_not_dead_says_so(outbox: Outbox, shop: Conn, entity: str) -> None:
    line = outbox.fails("retry", entity)
    assert f"{entity} in {status_of(shop, entity)} has no dead job" in line


def test_retry_all_makes_all_again_in_one_pipeline_or_in_every(outbox: Outbox, shop: Conn, dsn: str) -> None:
    posts.submit_many(shop, ((f"d{n}", Post(content="rejected")) for n in range(30)))
    drain(posts, dsn)
    assert outbox("retry", "--all", "--pipeline", "tickets").out.startswith("0 ")
    assert outbox("retry", "--all").out.startswith("31 ")
    assert outbox("dead", "--json").json == []
    assert value(shop, "SELECT count(*) FROM outbox.jobs WHERE stage = 'decide' AND attempt = 0") == 31


def test_parked_lists_and_retries_by_relay_and_id(outbox: Outbox, conn: Conn) -> None:
    assert outbox("parked").out == "no message is parked\n"
    assert outbox("parked", "--json").json == []
    for relay, number in (("a", 1), ("a", 2), ("b", 1)):
        conn.execute(PARKED, (relay, number))
    assert [words[:3] for words in rows_of(outbox("parked").out)] == [
        ["relay", "a", "1"], ["relay", "a", "2"], ["relay", "b", "1"],
    ]  # fmt: skip
    assert outbox("parked", "--relay", "a", "--retry", "1").out == "1 messages are tried again\n"
    (again, rest) = outbox("parked", "--relay", "a", "--json").json
    assert (again["id"], again["retry"], rest["id"], rest["retry"]) == (1, True, 2, False)
    assert (rest["relay"], rest["topic"], rest["key"], rest["payload"]) == ("a", "t", "k", {"n": 1})
    assert rest["reason"] == "unroutable: 312 NO_ROUTE"
    assert "to be tried again" in outbox("parked").out
    assert outbox("parked", "--retry").out == "2 messages are tried again\n"
    assert "an ID needs --retry" in outbox("parked", "1", code=2).err


def test_parked_lists_and_retries_what_consumers_could_not_handle(outbox: Outbox, conn: Conn) -> None:
    conn.execute(PARKED, ("a", 7))
    message = str(value(conn, "SELECT outbox.uuid7()"))
    conn.execute(DELIVERY, ("crm", message, "t.1", b'{"n": 1}', '{"cloudEvents_subject": "k1"}', "ValueError: no", 3))
    conn.execute(DELIVERY, ("crm", "no id", "t.2", b"\xff\x1b[31m", '{"cloudEvents:subject": "k2"}', "no UUID", 1))
    conn.execute(DELIVERY, ("app", None, "t.3", b"", '{"cloudEvents_subject": 4}', "[red]no UUID\x1b[31m", 1))
    said = outbox("parked").out
    relay, app, first, second = rows_of(said)
    assert (relay[:3], app[:3]) == (["relay", "a", "7"], ["consumer", "app", "3"])
    assert first[:5] == ["consumer", "crm", "1", "t.1", "k1"]
    assert message in said
    assert first[-3:] == ["3", "ValueError:", "no"], "how often it was delivered, and the reason"
    assert second[:5] == ["consumer", "crm", "2", "t.2", "k2"]
    assert app[-2:] == ["[red]no", "UUID\\x1b[31m"], "what others sent does nothing to the terminal"

    one, two = outbox("parked", "--consumer", "crm", "--json").json
    assert (one["consumer"], one["relay"], one["queue"], one["key"]) == ("crm", None, "q", "k1")
    assert (one["message_id"], one["topic"], one["body"], one["payload"]) == (message, "t.1", '{"n": 1}', None)
    assert (one["headers"], one["deliveries"]) == ({"cloudEvents_subject": "k1"}, 3)
    assert two["body"] == "\N{REPLACEMENT CHARACTER}\x1b[31m"
    assert [row["id"] for row in outbox("parked", "--relay", "a", "--json").json] == [7]
    assert outbox("parked", "--consumer", "a").out == "no message is parked\n"

    assert outbox("parked", "--retry", "2").out == "1 messages are tried again\n"
    assert outbox("parked", "--retry", "2").out == "1 messages are tried again\n", "it waits for that already"
    assert outbox("parked", "--retry", "--consumer", "crm").out == "1 messages are tried again\n"
    assert outbox("parked", "--retry", "--consumer", "crm").out == "0 messages are tried again\n"
    waiting = [(row["relay"] or row["consumer"], row["retry"]) for row in outbox("parked", "--json").json]
    assert waiting == [("a", False), ("app", False), ("crm", True), ("crm", True)]
    assert outbox("parked", "--retry").out == "2 messages are tried again\n"
    assert "exclude each other" in outbox("parked", "--relay", "a", "--consumer", "crm", code=2).err


def test_an_id_that_is_not_parked_or_is_that_of_several_is_an_error_and_nothing_is_tried_again(
    outbox: Outbox, conn: Conn
) -> None:
    for relay, number in (("a", 1), ("b", 1), ("b", 3)):
        conn.execute(PARKED, (relay, number))
    for n in (1, 2):
        conn.execute(DELIVERY, ("crm", None, "t", b"", "{}", "no UUID", n))
    assert outbox.fails("parked", "--retry", "9") == "outbox: no message with the id 9 is parked"
    assert outbox.fails("parked", "--retry", "2", "9", "3") == "outbox: no message with the id 9 is parked"
    assert outbox.fails("parked", "--retry", "--relay", "a", "3").endswith("id 3 is parked by relay a")
    assert outbox.fails("parked", "--retry", "--consumer", "x", "2").endswith("id 2 is parked by consumer x")
    several = "outbox: 1 is parked by relay a, relay b, consumer crm: say whose with --relay or --consumer"
    assert outbox.fails("parked", "--retry", "2", "1") == several
    assert "--help" in outbox("parked", "--retry", "0", code=2).err
    assert not any(row["retry"] for row in outbox("parked", "--json").json)
    assert outbox("parked", "--retry", "3", "2", "2").out == "2 messages are tried again\n"
    assert outbox("parked", "--retry", "--consumer", "crm", "1").out == "1 messages are tried again\n"
    assert [row["retry"] for row in outbox("parked", "--json").json] == [False, False, True, True, True]


def test_a_relay_is_forgotten_with_what_it_has_parked_unless_it_runs(outbox: Outbox, conn: Conn) -> None:
    assert outbox.fails("relay", "--forget", "old") == 'outbox: there is no relay "old"'
    for name in ("old", "main"):
        conn.execute(RELAY, (name, "host:1", None, AHEAD))
        conn.execute(PARKED, (name, 1))
    assert "is running: stop it first" in outbox.fails("relay", "--forget", "old")
    conn.execute("UPDATE outbox.relays SET updated_at = now() - interval '1 minute' WHERE name = 'old'")
    assert outbox("relay", "--forget", "old").out == "relay old is forgotten, with 1 parked messages\n"
    assert [relay["name"] for relay in outbox("status", "--json").json["relays"]] == ["main"]
    assert [row["relay"] for row in outbox("parked", "--json").json] == ["main"]
