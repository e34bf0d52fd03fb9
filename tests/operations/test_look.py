"""What a person asks: where everything stands, the story of one workflow, what is dead; by the command line."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from apps.cli import tickets
from kit.commands import Outbox
from kit.pipelines import deployed, status_of, value
from kit.shop import AHEAD, DELIVERY, PARKED, RELAY
from kit.waits import Task, families
from outbox.operations import look

Conn = psycopg.Connection[Any]


def test_status_shows_where_everything_is(outbox: Outbox, shop: Conn) -> None:
    rows = {line.split()[1]: line.split() for line in outbox("status").out.splitlines() if line.startswith("posts")}
    assert rows["RECEIVED"][:8] == ["posts", "RECEIVED", "enrich", "1", "1", "0", "0", "0"]
    assert rows["RECEIVED"][-2:] == ["no", "worker"]
    assert rows["ENRICHED"][:8] == ["posts", "ENRICHED", "decide", "1", "0", "0", "0", "1"]
    assert rows["COMPLETED"][2:] == ["1", "0", "0", "0", "0"]
    assert "no worker is running" in outbox("status").out


def test_status_json_is_one_document(outbox: Outbox, shop: Conn) -> None:
    found = outbox("status", "--json").json
    assert found.keys() == {
        "overview", "overdue", "limits", "progress", "workers", "relays", "parked_deliveries", "effects_unknown",
    }  # fmt: skip
    standing = {row["status"]: row["workflows"] for row in found["overview"]}
    assert standing == {
        "RECEIVED": 1, "ENRICHED": 1, "WAITING_FOR_REVIEW": 1, "APPROVED": 0, "COMPLETED": 1, "REJECTED": 0,
    }  # fmt: skip
    assert found["workers"] == []


def test_status_shows_a_worker_with_jobs_as_working(outbox: Outbox, shop: Conn) -> None:
    """It may have asked to be notified of more."""
    new = "INSERT INTO outbox.workers (name, stages, lease, idle) VALUES ('w', '{}', '1 hour', true) RETURNING id"
    first, second = value(shop, new), value(shop, new)
    shop.execute("UPDATE outbox.jobs SET owner = %s, claimed_at = now() WHERE owner IS NULL AND due", [first])
    found = {worker["id"]: worker["idle"] for worker in outbox("status", "--json").json["workers"]}
    assert found == {first: False, second: True}


def test_status_of_an_empty_database_says_so(outbox: Outbox) -> None:
    assert "no pipeline is deployed here" in outbox("status").out
    assert outbox("status", "--json").json == {
        "overview": [], "overdue": [], "limits": [], "progress": [], "workers": [], "relays": [], "parked_deliveries": [], "effects_unknown": []}  # fmt: skip


def test_status_shows_each_relay_with_its_lag_its_trouble_and_whether_it_runs(outbox: Outbox, shop: Conn) -> None:
    shop.execute("DELETE FROM outbox.messages")
    shop.execute(RELAY, ("a", "host:1", "the broker is away", AHEAD))
    shop.execute(RELAY, ("b", "host:2", "the broker is away", "1 minute"))
    shop.execute(RELAY, ("c", None, None, AHEAD))
    shop.execute(PARKED, ("b", 1))
    shop.execute("INSERT INTO outbox.messages (topic, created_at) VALUES ('t', now() - interval '3 hours')")
    shop.execute("UPDATE outbox.relays SET window_start = pg_current_snapshot() WHERE name = 'c'")
    lines = outbox("status").out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("relay"))
    assert [line.split() for line in lines[first:]] == [
        ["relay", "to", "process", "relayed", "parked", "behind", "trouble"],
        ["a", "exchange", "x", "host:1", "7", "0", "3h", "the", "broker", "is", "away"],
        ["b", "exchange", "x", "host:2", "7", "1", "3h", "not", "running"],
        ["c", "exchange", "x", "7", "0", "not", "running"],
    ]
    relays = outbox("status", "--json").json["relays"]
    columns = [
        "name",
        "running",
        "owner",
        "target",
        "settings",
        "relayed",
        "trouble",
        "beat_seconds_ago",
        "parked",
        "behind_seconds",
    ]
    assert [list(relay) for relay in relays] == [columns] * 3
    assert [(relay["running"], relay["parked"]) for relay in relays] == [(True, 0), (False, 1), (False, 0)]
    assert relays[0]["behind_seconds"] >= 3 * 3600
    assert relays[2]["behind_seconds"] is None


def test_show_tells_the_whole_story(outbox: Outbox, shop: Conn) -> None:
    said = outbox("show", "review").out
    first, _, title, *_ = said.splitlines()
    assert first.startswith("It waits in WAITING_FOR_REVIEW for somebody to change its status to APPROVED, REJECTED.")
    assert title == "review in posts: WAITING_FOR_REVIEW"
    for words in ("RECEIVED", "ENRICHED", "worker-", "enrich", "posts.enriched", '"content": "risky"'):
        assert words in said
    assert "ready" in outbox("show", "new").out, "its job waits"
    assert "rejected: no such customer" in outbox("show", "broken").out, "the dead job's error"


def test_show_json_is_one_document(outbox: Outbox, shop: Conn) -> None:
    found = outbox("show", "review", "--json").json
    assert found["current_status"] == "WAITING_FOR_REVIEW"
    assert [change["to_status"] for change in found["history"]] == ["RECEIVED", "ENRICHED", "WAITING_FOR_REVIEW"]
    assert [message["topic"] for message in found["messages"]] == ["posts.enriched"]
    assert (found["job"], found["dead_job"]) == (None, None)
    assert outbox("show", "new", "--json").json["job"]["state"] == "ready"
    assert outbox("show", "broken", "--json").json["dead_job"]["error"] == "rejected: no such customer"


@pytest.mark.parametrize("command", [["show", "x"], ["set-status", "x", "APPROVED"], ["retry", "x"]])
def test_an_unknown_entity_is_one_line(outbox: Outbox, shop: Conn, command: list[str]) -> None:
    assert 'no workflow of entity "x" in any pipeline' in outbox.fails(*command)
    assert 'no workflow of entity "x" in pipeline "posts"' in outbox.fails(*command, "--pipeline", "posts")


def test_an_entity_in_two_pipelines_asks_for_one(outbox: Outbox, shop: Conn) -> None:
    deployed(shop, tickets)
    tickets.submit(shop, "new", {"subject": "help"})
    for command in (["show", "new"], ["set-status", "new", "DONE"], ["retry", "new"]):
        line = outbox.fails(*command)
        assert "posts, tickets" in line
        assert "--pipeline" in line
    assert outbox("show", "new", "--pipeline", "tickets", "--json").json["metadata"] == {"subject": "help"}
    outbox("set-status", "new", "DONE", "--pipeline", "tickets")
    assert status_of(shop, "new") in ("RECEIVED", "DONE")
    assert value(shop, "SELECT current_status FROM outbox.workflow_states WHERE pipeline = 'tickets'") == "DONE"


def test_dead_lists_what_waits_for_a_person(outbox: Outbox, shop: Conn) -> None:
    said = outbox("dead").out
    assert "broken" in said
    assert "rejected: no such customer" in said
    (row,) = outbox("dead", "--json").json
    assert (row["pipeline"], row["entity_id"], row["stage"]) == ("posts", "broken", "decide")
    assert 'pipeline "tickets" is not deployed here; deployed are posts' in outbox.fails(
        "dead", "--pipeline", "tickets"
    )
    deployed(shop, tickets)
    assert outbox("dead", "--json", "--pipeline", "tickets").json == []
    assert outbox("dead", "--pipeline", "tickets").out == "no dead jobs\n"


def test_status_shows_what_consumers_have_parked(outbox: Outbox, conn: Conn) -> None:
    assert "to be tried again" not in outbox("status").out
    for consumer in ("crm", "crm", "app"):
        conn.execute(DELIVERY, (consumer, None, "t", b"", "{}", "no UUID", 1))
    conn.execute(
        "UPDATE outbox.parked_deliveries SET parked_at = now() - interval '3 hours', retry = true WHERE id = 2"
    )
    conn.execute("UPDATE outbox.parked_deliveries SET parked_at = now() - interval '5 hours' WHERE consumer = 'app'")
    lines = [line.split() for line in outbox("status").out.splitlines()]
    assert lines[-3:] == [
        ["consumer", "parked", "to", "be", "tried", "again", "oldest"], ["app", "1", "0", "5h"], ["crm", "2", "1", "3h"],
    ]  # fmt: skip
    app, crm = outbox("status", "--json").json["parked_deliveries"]
    assert (app["consumer"], app["parked"], app["to_retry"]) == ("app", 1, 0)
    assert (crm["consumer"], crm["parked"], crm["to_retry"]) == ("crm", 2, 1)
    assert crm["oldest_seconds"] >= 3 * 3600


def test_show_tells_the_login_of_who_goes_by_another_name(outbox: Outbox, shop: Conn) -> None:
    outbox("set-status", "review", "APPROVED", "--by", "sarah")
    assert f"sarah ({shop.info.user})" in outbox("show", "review").out
    assert not re.search(r"worker-\d+ \(", outbox("show", "review").out)
    last = outbox("show", "review", "--json").json["history"][-1]
    assert (last["actor"], last["login"]) == ("sarah", shop.info.user)


def test_show_tells_who_had_a_dead_job_run_again_and_why(outbox: Outbox, shop: Conn) -> None:
    assert outbox("show", "broken", "--json").json["actions"] == []
    outbox("retry", "broken", "--by", "sarah", "--reason", "mended")
    (action,) = outbox("show", "broken", "--json").json["actions"]
    assert (action["action"], action["stage"], action["actor"], action["reason"]) == (
        "retry", "decide", "sarah", "mended",
    )  # fmt: skip
    said = outbox("show", "broken").out
    assert re.search(rf"retry +decide +sarah \({shop.info.user}\) +mended", said), said


@pytest.mark.parametrize("as_json", [False, True])
def test_lists_end_at_their_limit_and_say_how_many_more_there_are(
    outbox: Outbox, conn: Conn, admin_dsn: str, as_json: bool
) -> None:
    with psycopg.connect(admin_dsn) as admin:
        for statement in (
            "INSERT INTO outbox.dead_jobs (workflow_id, pipeline, entity_id, stage, status, entered, attempts, error) "
            "SELECT gen_random_uuid(), 'p', 'dead' || n, 's', 'NEW', 1, 1, 'why' FROM generate_series(1, 1234) AS n",
            "INSERT INTO outbox.parked_messages (relay, id, message_id, topic, created_at, reason) "
            "SELECT 'r', n, gen_random_uuid(), 't', now(), 'why' FROM generate_series(1, 103) AS n",
        ):
            admin.execute(statement.encode())
    json = ["--json"] * as_json
    for command, limit, shown, more in (
        (["dead"], [], 100, "… and 1,134 more; see them with --limit"),
        (["dead"], ["--limit", "3"], 3, "… and 1,231 more; see them with --limit"),
        (["dead", "--pipeline", "p"], ["--limit", "1234"], 1234, ""),
        (["parked"], [], 100, "… and 3 more; see them with --limit"),
        (["parked", "--relay", "r"], ["--limit", "103"], 103, ""),
    ):
        done = outbox(*command, *limit, *json)
        if as_json:
            assert (len(done.json), done.err.strip()) == (shown, more)
        else:
            assert sum(" why" in line for line in done.out.splitlines()) == shown
            assert ("… and" in done.out.splitlines()[-1]) == bool(more)
            assert more in done.out
    outbox("dead", "--pipeline", "other", *json, code=1)


def test_show_shows_the_latest_of_what_is_many(outbox: Outbox, conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, families(lambda run: None, None)[1])
    made = pipeline.submit(conn, "many", Task())
    conn.execute(
        "INSERT INTO outbox.state_changes (workflow_id, to_status, version, actor) "
        "SELECT %s, 'S' || n, n, 'x' FROM generate_series(2, 500) AS n",
        (made.id,),
    )
    conn.execute(
        "INSERT INTO outbox.messages (topic, workflow_id) SELECT 't' || n, %s FROM generate_series(1, 250) AS n",
        (made.id,),
    )
    signals = "INSERT INTO outbox.signals (pipeline, entity_id, name) VALUES ('tasks', 'many', %s)"
    for n in range(3):
        conn.execute(signals, (f"n{n}",))
    found = outbox("show", "many", "--json").json
    assert [change["version"] for change in found["history"]] == list(range(401, 501)), "the latest, in their order"
    assert [message["topic"] for message in found["messages"]] == [f"t{n}" for n in range(151, 251)]
    assert found["more"] == {"history": 400, "messages": 150}
    assert [row["name"] for row in outbox("show", "many", "--limit", "2", "--json").json["signals"]] == ["n1", "n2"]
    words = outbox("show", "many", "--limit", "2").out
    assert [line for line in words.splitlines() if "more" in line] == [
        "… and 498 more; see them with --limit",
        "… and 1 more; see them with --limit",
        "… and 248 more; see them with --limit",
    ]
    everything = outbox("show", "many", "--limit", "500", "--json").json
    assert (len(everything["history"]), everything["more"]) == (500, {})


def test_a_list_without_data_reads_none(conn: Conn, shop: Conn) -> None:
    conn.execute("ALTER TABLE outbox.workflow_states ALTER COLUMN metadata SET STORAGE EXTERNAL")
    conn.execute("UPDATE outbox.workflow_states SET metadata = jsonb_build_object('a', repeat('x', 100000))")

    def read() -> int:
        conn.execute("SELECT pg_stat_force_next_flush()")
        found: int = value(conn, "SELECT toast_blks_hit + toast_blks_read FROM pg_statio_user_tables "
                                 "WHERE schemaname = 'outbox' AND relname = 'workflow_states'")  # fmt: skip
        return found

    asked = {"status": None, "older": None, "assignee": None, "entity": None, "waits_for": None, "dead": False,
             "error": None, "limit": 50, "after": None}  # fmt: skip
    counts = [read()]
    for data in (False, True):
        found = look.workflows(conn, "posts", data=data, **asked)["workflows"]
        assert [row["metadata"] is not None for row in found] == [data] * 4
        counts.append(read())
    assert counts[0] == counts[1] < counts[2]
