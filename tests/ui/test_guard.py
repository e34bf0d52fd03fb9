"""The page is safe by default: who comes in, from where, and from which page; and what each answer says to browsers."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kit.browsing import ALL, OURS, Visitor, visitor
from kit.pipelines import value
from outbox import DefinitionError, InvalidInput, SettingsError
from outbox.ui import Person, dashboard

PAGES = ("/", "/workflows", "/approvals", "/dead", "/messages", "/workers", "/doctor", "/pipeline?pipeline=posts",
         "/workflow?pipeline=posts&entity=review")  # fmt: skip
MOVE = {"pipeline": "posts", "entity": "review", "status": "APPROVED"}


def unchanged(dsn: str) -> bool:
    with psycopg.connect(dsn) as conn:
        return bool(
            value(
                conn,
                "SELECT current_status = 'WAITING_FOR_REVIEW' FROM outbox.workflow_states WHERE entity_id = 'review'",
            )
        )


@pytest.mark.parametrize("path", [*PAGES, "/bulk?act=cancel&pipeline=posts", "/static/outbox.css", "/nothing"])
def test_every_answer_forbids_inline_scripts_styles_frames_and_foreign_sources(stocked: str, path: str) -> None:
    page = visitor(stocked).get(path)
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "form-action")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "frame-ancestors")} == {"'none'"}
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "same-origin"
    for tag, attributes in page.tags:
        assert tag != "style", path
        assert tag != "script" or attributes.get("src"), path
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (path, attributes)
        for name in ("src", "href", "action"):
            assert not (attributes.get(name) or "").startswith(("http", "//", "javascript:")), (path, attributes)


def test_only_this_machine_may_look_where_nobody_is_identified(stocked: str) -> None:
    app = dashboard(stocked)
    for host in ("http://localhost", "http://127.0.0.1:8088", "http://[::1]:8088", "http://LOCALHOST."):
        assert Visitor(app, host=host).get("/").status == 200, host
    for host in (
        "http://evil.example",
        "http://10.0.0.7",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
    ):
        page = Visitor(app, host=host).get("/")
        assert (page.status, "identify=" in page.text) == (403, True), host


def test_a_request_from_elsewhere_is_refused_whatever_host_it_names(stocked: str) -> None:
    assert Visitor(dashboard(stocked), address="192.0.2.7").get("/").status == 403
    local = Visitor(dashboard(stocked))
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        assert local.get("/", headers={header: "192.0.2.7"}).status == 403, header


def test_a_rebinding_host_is_refused_where_the_hosts_are_named(stocked: str) -> None:
    app = dashboard(stocked, identify=lambda request: Person("sarah"), hosts={"Shop.example:443"})
    for host, status in (("http://shop.example:8443", 200), ("http://localhost", 200), ("http://evil.example", 403)):
        assert Visitor(app, host=host).get("/").status == status


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"referer": "http://localhost/"},
    ],
)
def test_a_form_of_another_site_changes_nothing(stocked: str, headers: dict[str, str]) -> None:
    visit = visitor(stocked)
    assert visit.post("/workflow/move", MOVE, headers=headers).status == 403
    assert unchanged(stocked)


def test_a_form_of_ours_is_known_by_its_origin_where_the_browser_says_no_more(conn: Any, shop: Any, dsn: str) -> None:
    page = visitor(dsn).post("/workflow/move", MOVE, headers={"origin": "http://localhost"})
    assert "It was moved." in page.text


@pytest.mark.parametrize("path", ["/workflow/move", "/workflow/retry", "/stages/pause", "/messages/retry"])
def test_nothing_is_changed_by_a_get(stocked: str, path: str) -> None:
    assert visitor(stocked).get(f"{path}?pipeline=posts&entity=review&status=APPROVED").status in (404, 405)
    assert unchanged(stocked)


def test_who_is_not_known_sees_nothing(stocked: str) -> None:
    async def nobody(request: Any) -> None:
        return None

    for identify in (nobody, lambda request: None):
        visit = Visitor(dashboard(stocked, identify=identify))
        for path in (*PAGES, "/events"):
            assert visit.get(path).status == 403
        assert visit.post("/workflow/move", MOVE).status == 403


def test_identify_may_be_async_and_sees_the_request(stocked: str) -> None:
    async def identify(request: Any) -> Person | None:
        return Person(request.headers["x-user"]) if "x-user" in request.headers else None

    visit = Visitor(dashboard(stocked, identify=identify))
    assert visit.get("/").status == 403
    assert "ann" in visit.get("/", headers={"x-user": "ann"}).text


def test_an_identify_that_fails_or_returns_something_else_lets_nobody_in(stocked: str) -> None:
    for identify in (lambda request: 1 / 0, lambda request: "sarah", lambda request: True):
        with pytest.raises((ZeroDivisionError, TypeError)):
            Visitor(dashboard(stocked, identify=identify)).get("/")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", PAGES)
def test_without_a_right_there_is_no_button(stocked: str, path: str) -> None:
    def changing(may: tuple[str, ...]) -> list[str]:
        return [form.action for form in visitor(stocked, may=may).get(path).forms if form.method == "post"]

    assert changing(("look",)) == []
    assert all("/approvals/" in action for action in changing(("look", "decide")))
    assert not [action for action in changing(("look", "operate")) if "/approvals/" in action]


@pytest.mark.parametrize("may", [("look",), ("look", "decide")])
def test_without_the_right_to_operate_a_post_is_403(stocked: str, may: tuple[str, ...]) -> None:
    visit = visitor(stocked, may=may)
    for path in ("/workflow/move", "/workflow/retry", "/workflow/cancel", "/workflow/signal", "/bulk", "/stages/pause",
                 "/stages/resume", "/messages/retry"):  # fmt: skip
        page = visit.post(path, {**MOVE, "name": "x", "stage": "act", "error": "x", "relay": "x"})
        assert (page.status, "may not operate" in page.text) == (403, True), path
    assert visit.get("/bulk?act=cancel&pipeline=posts").status == 403
    assert "/bulk" not in visit.get("/workflows?pipeline=posts").html + visit.get("/dead").html
    assert unchanged(stocked)


def test_without_the_right_to_decide_a_decision_is_403(stocked: str) -> None:
    page = visitor(stocked, may=("look", "operate")).post(
        "/approvals/00000000-0000-7000-8000-000000000000", {"decision": "approve"}
    )
    assert (page.status, "may not decide" in page.text) == (403, True)


def test_without_identify_nobody_may_change_anything(stocked: str) -> None:
    assert visitor(stocked, None).post("/workflow/move", MOVE).status == 403
    assert unchanged(stocked)


def test_who_may_not_look_sees_nothing(stocked: str) -> None:
    assert visitor(stocked, may=("operate",)).get("/").status == 403


def test_a_form_is_of_the_kind_and_the_size_that_our_pages_send(stocked: str) -> None:
    visit = visitor(stocked)
    assert visit.ask("POST", "/workflow/move", json=MOVE, headers=OURS).status_code == 415
    assert visit.post("/workflow/move", {**MOVE, "reason": "x" * 1_000_001}).status == 413
    kind = {**OURS, "content-type": "application/x-www-form-urlencoded"}
    broken = visit.ask("POST", "/workflow/move", content=b"pipeline=%ff&entity=\xff", headers=kind)
    assert broken.status_code == 400
    assert unchanged(stocked)


def test_a_link_can_say_nothing_of_its_own(stocked: str) -> None:
    page = visitor(stocked).get("/?done=Send+your+password&n=<b>7")
    assert "password" not in page.html
    assert "<b>7" not in page.html


def test_no_page_shows_a_password(stocked: str) -> None:
    dsn = stocked.replace("outbox_owner@", "outbox_owner:secretword@")
    for path in PAGES:
        assert "secretword" not in visitor(dsn).get(path).html
    wrong = visitor(dsn.replace("/test_", "/gone_")).get("/")
    assert wrong.status == 200
    assert "secretword" not in wrong.html
    with pytest.raises(SettingsError) as refused:
        dashboard("postgresql://ann:secret/word@host/shop")
    assert "word" not in str(refused.value).partition(":")[0]


def test_a_person_has_a_name_and_rights_that_exist() -> None:
    assert Person("sarah").may == {"look"}
    wrong: Any
    for wrong in (
        ("", ALL), ("a\0b", ALL), ("sarah", {"look", "delete"}), ("sarah", "look"), ("sarah", None), ("sarah", [["look"]]),
        ("sarah", ALL, "finance"), ("sarah", ALL, {7}),
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            Person(*wrong)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"hosts": "shop.example"}, "not a string"),
        ({"statement_timeout": 0}, "statement_timeout: 0 is not a time"),
        ({"statement_timeout": "3s"}, "statement_timeout: '3s' is not a time"),
    ],
)
def test_what_no_page_can_be_made_with_is_refused_when_it_is_made(stocked: str, wrong: Any, reason: str) -> None:
    with pytest.raises((TypeError, DefinitionError), match=reason):
        dashboard(stocked, **wrong)
