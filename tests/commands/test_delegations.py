"""The command line of delegations: who votes in whose place."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

import outbox
from kit.commands import Outbox
from kit.pipelines import value
from kit.waits import waiting
from outbox import WaitForApproval

Conn = psycopg.Connection[Any]
ASKED = WaitForApproval("Pay it?", options={"approve": "PAID", "reject": "REFUSED"}, approvers={"finance": 1})


def test_a_delegation_is_given_listed_and_ended(conn: Conn, dsn: str) -> None:
    pipeline, run = waiting(conn, dsn, ASKED), Outbox(dsn)
    assert run("delegations").out == "nothing is delegated\n"
    assert run("delegations", "--json").json == []
    said = run("delegate", "eva", "--for", "14d", "--by", "ann", "--group", "finance", "--reason", "on holiday").out
    assert said.startswith("eva votes in the place of ann until 20")
    (row,) = run("delegations", "--json").json
    assert {name: row[name] for name in ("from_person", "to_person", "groups", "reason")} == {
        "from_person": "ann", "to_person": "eva", "groups": ["finance"], "reason": "on holiday",
    }  # fmt: skip
    left = datetime.fromisoformat(row["until"]) - datetime.now(UTC)
    assert timedelta(days=13) < left < timedelta(days=15)
    for text in ("eva", "ann", "14d", "finance", "on holiday"):
        assert text in run("delegations").out
    assert run("delegate", "eva", "--end", "--by", "ann").out == "eva no longer votes in the place of ann\n"
    assert run("delegate", "eva", "--end", "--by", "ann").out == "eva did not vote in the place of ann\n"
    with pytest.raises(outbox.VoteRefused):
        outbox.approve(conn, pipeline, "a", by="eva", groups=[])
    run("delegate", "eva", "--for", "1h", "--by", "ann", "--group", "finance")
    assert outbox.approve(conn, pipeline, "a", by="eva", groups=[]) == "PAID"


def test_who_delegates_is_the_user_unless_said(conn: Conn, dsn: str) -> None:
    assert Outbox(dsn)("delegate", "eva", "--for", "1h").out.startswith("eva votes in your place until 20")
    assert value(conn, "SELECT from_person FROM outbox.delegations") == getpass.getuser()
    assert Outbox(dsn)("delegate", "eva", "--end").out == "eva no longer votes in your place\n"


@pytest.mark.parametrize(
    ("until", "stored"),
    [
        ("2099-01-08T18:00+01:00", "2099-01-08 17:00:00+00"),
        ("2099-01-08T18:00Z", "2099-01-08 18:00:00+00"),
        ("2099-01-08", datetime(2099, 1, 8).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S+00")),
    ],
)
def test_the_end_may_be_a_time(conn: Conn, dsn: str, until: str, stored: str) -> None:
    Outbox(dsn)("delegate", "eva", "--until", until)
    conn.execute("SET timezone = 'UTC'")
    assert value(conn, "SELECT until::text FROM outbox.delegations") == stored


def test_the_list_has_those_of_and_to_a_person_that_have_not_ended(conn: Conn, dsn: str) -> None:
    run = Outbox(dsn)
    for by, to in (("ann", "eva"), ("eva", "ben"), ("cid", "ben"), ("dan", "eva")):
        run("delegate", to, "--for", "1h", "--by", by)
    conn.execute("UPDATE outbox.delegations SET until = now() - interval '1 s' WHERE from_person = 'dan'")
    listed = run("delegations", "--person", "eva", "--json").json
    assert {(row["from_person"], row["to_person"]) for row in listed} == {("ann", "eva"), ("eva", "ben")}
    some = run("delegations", "--limit", "2", "--json")
    assert len(some.json) == 2
    assert "1 more" in some.err


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ((), 2, "give one of --for, --until and --end"),
        (("--for", "1h", "--end"), 2, "give one of --for, --until and --end"),
        (("--for", "1h", "--until", "2099-01-08"), 2, "give one of --for, --until and --end"),
        (("--end", "--reason", "late"), 2, "--end takes neither --group nor --reason"),
        (("--for", "soon"), 2, "'soon' is not a time of up to 30 years"),
        (("--until", "tomorrow"), 2, "'tomorrow' is not a time, such as 2027-01-08"),
        (("--until", "0001-01-01"), 2, "'0001-01-01' is not a time"),
        (("--until", "2001-01-08"), 1, "until: must be later than now, not 2001-01-08"),
        (("--for", "1h", "--by", "eva"), 1, "to: must be another person"),
    ],
)
def test_wrong_usage_says_what_would_be_right(dsn: str, options: tuple[str, ...], code: int, told: str) -> None:
    done = Outbox(dsn)("delegate", "eva", *options, code=code)
    assert told in done.err
