"""What each page shows, wherever it is mounted, and whatever the data is like."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest

from apps.cli import posts
from kit.browsing import visitor
from kit.pipelines import Post, value
from kit.shop import AHEAD, DELIVERY, PARKED, RELAY
from kit.waits import QUESTION, Order, waiting
from outbox import approve
from outbox.operations import doctor

Conn = psycopg.Connection[Any]
ODD = (
    "<script>alert(1)</script>\"'&<!-- \u202e\u2067 \U0001f468\u200d\U0001f469\u200d\U0001f467 ../../?a=b#c%00%2f\t\r\n\r\x1b[31m"
    + "\u05d0" * 300
)
assert len(ODD) <= 512


def test_the_overview_shows_each_stage_in_the_order_of_the_flow(stocked: str) -> None:
    page = visitor(stocked).get("/")
    assert page.status == 200
    assert "took longer" not in page.text
    statuses = [
        parse_qs(urlsplit(link).query)["status"][0] for link in page.links if "status=" in link and "dead" not in link
    ]
    assert statuses == ["RECEIVED", "ENRICHED", "WAITING_FOR_REVIEW", "APPROVED", "COMPLETED", "REJECTED"]
    assert "1 dead" in page.text
    assert "no worker" in page.text
    assert "0 open questions" in page.text
    assert "fsync" in page.text, "a finding of the doctor"


def test_the_overview_shows_who_serves_what_is_paused_and_where_relays_are(shop: Conn, dsn: str) -> None:
    shop.execute("INSERT INTO outbox.workers (name, stages, lease) VALUES ('box-1', '{posts.enrich}', '1 hour')")
    shop.execute("INSERT INTO outbox.pauses (pipeline, stage, paused_by) VALUES ('posts', 'act', 'ann')")
    shop.execute(RELAY, ("eu", "box:7", "the broker is away", AHEAD))
    page = visitor(dsn).get("/")
    assert "box-1" in page.text
    assert "paused" in page.text
    assert "the broker is away" in page.text
    assert "in the last hour" in page.text, "the picture in words"


@pytest.mark.parametrize("at", ["/outbox", "/a b/ü", "/x/y"])
def test_every_link_and_form_leads_to_where_it_is_mounted(stocked: str, at: str) -> None:
    visit = visitor(stocked, at=at)
    seen: set[str] = set()
    to_see = [f"{quote(at)}/"]
    while to_see:
        path = to_see.pop()
        page = visit.get(path)
        assert page.status == 200, path
        for target in [*page.links, *(form.action for form in page.forms)]:
            if target.startswith("#"):
                continue
            assert target.startswith(quote(at) + "/"), (path, target)
        for target in page.links:
            kind = urlsplit(target).path
            if not target.startswith("#") and kind not in seen:
                seen.add(kind)
                to_see.append(target)
    assert len(seen) >= 9


def test_a_workflow_shows_why_it_does_not_move_and_its_story(stocked: str) -> None:
    page = visitor(stocked).get("/workflow?pipeline=posts&entity=broken")
    assert "outbox retry broken" in page.text, "the remedy"
    assert "dead after" in page.text
    assert "rejected: no such customer" in page.text
    assert (
        page.text.index("started in RECEIVED") < page.text.index("RECEIVED → ENRICHED") < page.text.index("dead after")
    )
    assert "outbox_owner" in page.text, "the login"


def test_an_odd_entity_is_text_on_every_page(shop: Conn, dsn: str) -> None:
    posts.submit(shop, ODD, Post(content=f"rejected: {ODD[:40]}"))
    shop.execute("UPDATE outbox.workflow_states SET metadata = jsonb_build_object('content', entity_id, entity_id, 1)")
    shop.execute("SELECT outbox.retry('posts', 'broken')")
    shop.execute(
        "INSERT INTO outbox.dead_jobs (workflow_id, pipeline, entity_id, stage, status, entered, attempts, error) "
        "SELECT w.id, w.pipeline, w.entity_id, 'enrich', 'RECEIVED', 1, 3, left(w.entity_id, 200) FROM outbox.workflow_states AS w "
        "WHERE w.entity_id LIKE '<script>%'"
    )
    visit = visitor(dsn)
    found = [visit.get(path) for path in ("/workflows", "/dead", "/workflows?entity=%3Cscript")]
    found.append(visit.get(found[0].link("entity=%3Cscript")))
    found.append(visit.get(found[0].link("entity=%3Cscript").replace("/workflow?", "/workflow/data?")))
    for page in found:
        assert page.status == 200
        assert "alert(1)" in page.text or page is found[-1]
        inline = [tag for tag, attributes in page.tags if tag == "script" and "src" not in attributes]
        assert not inline or page is found[-1]
        assert "\x1b" not in page.text or page is found[-1], "a control character is seen as a sign"
    assert found[-1].headers["content-type"].startswith("text/plain")
    moved = visit.submit(found[3].form("/workflow/signal"), name="x", payload="1")
    assert "The signal was sent." in moved.text, "its forms lead back to it"


@pytest.mark.parametrize(
    "text", ["1.10", "12345678901234567890.123456789", "1e-7", "100000000000000000000000001", "-0.0", "1E400"]
)
def test_numbers_are_shown_as_stored(conn: Conn, shop: Conn, dsn: str, text: str) -> None:
    conn.execute(
        "UPDATE outbox.workflow_states SET metadata = jsonb_build_object('n', %s::numeric) WHERE entity_id = 'new'",
        (text,),
    )
    stored = value(conn, "SELECT metadata ->> 'n' FROM outbox.workflow_states WHERE entity_id = 'new'")
    visit = visitor(dsn)
    assert stored in visit.get("/workflow?pipeline=posts&entity=new").text
    assert stored in visit.get("/workflow/data?pipeline=posts&entity=new").text


def test_large_data_is_folded_and_whole_on_request(conn: Conn, shop: Conn, dsn: str) -> None:
    conn.execute(
        "UPDATE outbox.workflow_states SET metadata = jsonb_build_object('a', repeat('x', 10000000), 'z', 'end')"
    )
    visit = visitor(dsn, statement_timeout=60)
    page = visit.get("/workflow?pipeline=posts&entity=new")
    assert len(page.html) < 60_000
    assert "it goes on" in page.text
    whole = visit.get(page.link("/workflow/data"))
    assert len(whole.html) > 10_000_000
    assert '"end"' in whole.html
    assert len(visit.get("/workflows").html) < 60_000


def test_hidden_fields_are_on_no_page(conn: Conn, shop: Conn, dsn: str) -> None:
    data = {
        "content": "risky",
        "card": {"number": "4111-0000", "kept": "shown-1"},
        "list": [{"pin": "9876-x"}],
        "pin": "1234-y",
    }
    conn.execute("UPDATE outbox.workflow_states SET metadata = %s", (json.dumps(data),))
    conn.execute("""INSERT INTO outbox.messages (topic, payload, workflow_id)
                    SELECT 't', '{"pin": "5555-z"}', id FROM outbox.workflow_states""")
    conn.execute(
        """INSERT INTO outbox.signals (pipeline, entity_id, name, payload) VALUES ('posts', 'new', 's', '{"pin": "7777-w"}')"""
    )
    for hide in ({"pin", "card.number"}, lambda path: path.endswith(("pin", "number"))):
        visit = visitor(dsn, hide=hide)
        for path in ("/workflow", "/workflow/data"):
            page = visit.get(f"{path}?pipeline=posts&entity=new")
            assert not [text for text in ("4111", "9876", "1234-", "5555", "7777") if text in page.html], path
            assert "shown-1" in page.html
            assert "(hidden)" in page.html
    with pytest.raises(TypeError, match="not a string"):
        visitor(dsn, hide="pin")


def test_hidden_fields_of_what_is_parked_are_not_shown(shop: Conn, dsn: str) -> None:
    bodies = (b'{"pin": "1234-y", "kept": "shown-1"}', b'{"pin": "1234-y", cut off')
    for body in bodies:
        shop.execute(DELIVERY, ("crm", "m-1", "t", body, "{}", "no such customer", 3))
    page = visitor(dsn, hide={"pin"}).get("/messages")
    assert ("1234-y" in page.html, "shown-1" in page.text, page.text.count("(hidden)")) == (False, True, 2)
    assert '{"pin": "1234-y", cut off' in visitor(dsn).get("/messages").text, "it is shown as it arrived"


def test_data_that_python_can_not_read_is_shown_as_stored_and_hides_all_of_it(conn: Conn, shop: Conn, dsn: str) -> None:
    conn.execute("""UPDATE outbox.workflow_states SET metadata = jsonb_build_object('pin', '1234-y', 'n', 10::numeric ^ 5000)
                    WHERE entity_id = 'new'""")
    for path in ("/workflow", "/workflow/data"):
        asked = f"{path}?pipeline=posts&entity=new"
        assert '"pin": "1234-y"' in visitor(dsn).get(asked).text
        page = visitor(dsn, hide={"pin"}).get(asked)
        assert ("1234-y" in page.html, "(hidden)" in page.text) == (False, True)


def test_lists_have_their_filters_in_the_url_and_go_on_page_by_page(conn: Conn, shop: Conn, dsn: str) -> None:
    posts.submit_many(conn, ((f"many_{n:03}", Post()) for n in range(120)))
    visit = visitor(dsn)
    page = visit.get("/workflows?pipeline=posts&status=RECEIVED&entity=many_")
    seen: list[str] = []
    while True:
        seen += [
            parse_qs(urlsplit(link).query)["entity"][0] for link in page.links if urlsplit(link).path == "/workflow"
        ]
        following = [link for link in page.links if "after=" in link]
        if not following:
            break
        assert "status=RECEIVED" in following[0]
        page = visit.get(following[0])
    assert sorted(seen) == [f"many_{n:03}" for n in range(120)]
    assert page.form("/workflows").fields["entity"] == "many_", "the form has what the URL has"
    assert "posts" in visit.get("/workflows?dead=1").text


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("pipeline=nope", 404),
        ("pipeline=posts&status=NOPE", 404),
        ("older=soon", 400),
        ("waits_for=godot", 400),
        ("after=zzz", 400),
        ("entity=a%00b", 400),
        ("status=%ED%A0%80", 404),
    ],
)
def test_a_filter_that_cannot_be_is_refused_with_the_reason(stocked: str, query: str, status: int) -> None:
    page = visitor(stocked).get(f"/workflows?{query}")
    assert page.status == status
    assert "This did not work" in page.text


@pytest.mark.parametrize(
    "path",
    ["/workflow?pipeline=posts&entity=gone", "/workflow?entity=", "/workflow?pipeline=posts&entity=a%00b", "/pipeline?pipeline=x",
     "/approvals/nonsense", "/approvals/00000000-0000-7000-8000-000000000000", "/approvals?after=x", "/answer/x", "/static/..%2fapp.py"],
)  # fmt: skip
def test_what_is_not_there_is_said(stocked: str, path: str) -> None:
    assert visitor(stocked).get(path).status in (400, 404)


def test_a_pipeline_is_drawn_with_its_counts(stocked: str) -> None:
    page = visitor(stocked).get("/pipeline?pipeline=posts")
    assert page.status == 200
    assert sum(tag == "rect" for tag, _ in page.tags) == 6
    assert [attributes for tag, attributes in page.tags if tag == "g" and "dead" in (attributes["class"] or "")]
    assert any("status=WAITING_FOR_REVIEW" in link for link in page.links)


def test_messages_workers_and_schedules_are_shown(conn: Conn, shop: Conn, dsn: str) -> None:
    shop.execute(RELAY, ("eu", "box:7", "the broker is away", AHEAD))
    shop.execute(PARKED, ("eu", 17))
    shop.execute(DELIVERY, ("crm", "m-1", "t", b"\xff<b>not JSON", "{}", "no such customer", 3))
    page = visitor(dsn).get("/messages")
    for text in ("the broker is away", "312 NO_ROUTE", "no such customer", "not JSON", "relay eu", "consumer crm"):
        assert text in page.text, text
    shop.execute("INSERT INTO outbox.workers (name, stages, lease) VALUES ('box-1', '{posts.enrich}', '1 hour')")
    assert "box-1" in visitor(dsn).get("/workers").text


def test_what_an_answer_did_to_the_data_is_shown_where_it_is_known(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    approve(conn, pipeline, "a", by="ann", edit=Order(total=7, payment={"pin": 1}))
    conn.execute("UPDATE outbox.workflow_states SET metadata = jsonb_set(metadata, '{total}', '8')")
    page = visitor(dsn, hide={"pin"}).get("/workflow?pipeline=orders&entity=a")
    first, second = page.text.index("5 7"), page.text.index("7 8")
    assert first < second
    assert "payment" in page.text[first:second]
    assert "(hidden)" in page.text[first:second]


def test_a_hundred_pipelines_with_a_thousand_statuses_are_shown(conn: Conn, dsn: str) -> None:
    conn.execute(
        """INSERT INTO outbox.pipelines (pipeline, initial_status) SELECT 'p' || lpad(p::text, 3, '0'), 'S1' FROM generate_series(1, 100) AS p;
           INSERT INTO outbox.routes (pipeline, status, final)
           SELECT p.pipeline, 'S' || s, s = 1000 FROM outbox.pipelines AS p, generate_series(1, 1000) AS s;
           INSERT INTO outbox.legal_changes (pipeline, from_status, to_status)
           SELECT p.pipeline, 'S' || s, 'S' || s + 1 FROM outbox.pipelines AS p, generate_series(1, 999) AS s;
           ANALYZE outbox.pipelines, outbox.routes, outbox.legal_changes"""
    )
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status) VALUES ('p001', 'a', 'S900')"
    )
    visit = visitor(dsn, statement_timeout=60)
    page = visit.get("/")
    assert len(page.html) < 1_000_000
    assert "S900" in page.text, "where something is comes first"
    assert "p100" in page.text
    drawn = visit.get(page.link("pipeline=p001"))
    assert sum(tag == "rect" for tag, _ in drawn.tags) == 1000
    assert "S900" in visit.get("/workflows?pipeline=p001").text
    assert visit.get("/workflows").status == 200


def test_a_long_error_is_folded_and_whole(shop: Conn, dsn: str) -> None:
    shop.execute("UPDATE outbox.dead_jobs SET error = 'first line' || E'\\n' || repeat('y', 10000), traceback = NULL")
    page = visitor(dsn).get("/workflow?pipeline=posts&entity=broken")
    assert "y" * 10000 in page.text
    assert any(tag == "details" for tag, _ in page.tags)


@pytest.mark.parametrize("path", ["/", "/workflows", "/workflow?entity=review", "/approvals", "/dead", "/messages", "/workers",
                                  "/doctor", "/pipeline?pipeline=posts"])  # fmt: skip
def test_a_page_that_follows_shows_what_is_there(shop: Conn, dsn: str, path: str) -> None:
    visit = visitor(dsn)
    page = visit.get(path, headers={"x-outbox-follows": "1"})
    assert (page.status, page.text) == (200, visit.get(path, headers={"x-outbox-follows": "1"}).text)


def test_the_doctor_looks_once_for_many_who_open_the_overview(
    shop: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    examine = doctor.examine
    monkeypatch.setattr(
        doctor, "examine", lambda conn, *more, **options: looks.append(0) or examine(conn, *more, **options)
    )
    visit = visitor(dsn)
    for _ in range(3):
        assert "dead job" in visit.get("/").text
    assert len(looks) == 1
    visit.get("/doctor")
    assert len(looks) == 2, "who asks the doctor wants to know it now"
