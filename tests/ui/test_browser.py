"""The page in a real browser: nothing is refused by its own policy, nothing foreign is loaded, and it follows what happens."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from starlette.responses import PlainTextResponse

from apps.cli import posts
from kit import node
from kit.browsing import ALL, served
from kit.chromium import program
from kit.databases import make_database
from kit.pipelines import Post, deployed, drain, status_of, value
from kit.servers import DEADLINE, PostgresServer, Process
from kit.waits import TIMED, Order, orders
from outbox import Pipeline, approval_link
from outbox.database import migrations
from outbox.operations import bulk as operation
from outbox.operations import sessions
from outbox.ui import Person, dashboard, live
from outbox.ui.pages import bulk

Conn = psycopg.Connection[Any]
PATIENCE = DEADLINE * 1000
NAMES = ("Workflows", "Approvals", "Dead jobs", "Messages", "Workers", "Doctor", "Overview")


@pytest.fixture
def full(shop: Conn, dsn: str) -> Conn:
    """The shop, with an order that waits for an answer, and lamps that can be cancelled."""
    shop_of_orders = deployed(shop, orders(TIMED))
    shop_of_orders.submit(shop, "order", Order(total=5))
    drain(shop_of_orders, dsn)
    lamps: Pipeline[Any] = Pipeline("lamps", initial="OFF", final={"GONE"}, cancelled="GONE")
    lamps.allow("OFF", to="ON")
    lamps.allow("ON", to="OFF")
    deployed(shop, lamps)
    lamps.submit_many(shop, ((f"lamp_{n}", {}) for n in range(6)))
    return shop


@pytest.fixture
def browser() -> Iterator[Browser]:
    """The Chromium of the machine: playwright needs none of its own. While it is open, asyncio.run is not possible."""
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def address(full: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the page is, for sarah, who may do everything."""
    for name in ("EVERY", "BUSY"):
        monkeypatch.setattr(live, name, 0.05)
    with served(dashboard(dsn, identify=lambda request: Person("sarah", ALL))) as found:
        yield found


def watched(browser: Browser, address: str, **options: Any) -> tuple[Page, list[str]]:
    """Returns a page, and the list of all that goes wrong on it."""
    page = browser.new_context(timezone_id="Asia/Tokyo", **options).new_page()
    page.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith((address, "data:")) else wrong.append(request.url)
    )
    return page, wrong


def said(page: Page, text: str) -> None:
    expect(page.get_by_role("status").filter(has_text=text)).to_be_visible(timeout=PATIENCE)


@pytest.mark.parametrize("javascript", [True, False])
def test_every_page_and_action_works(address: str, full: Conn, browser: Browser, javascript: bool) -> None:
    page, wrong = watched(browser, address, java_script_enabled=javascript)
    page.goto(address)
    for name in NAMES:
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(name, timeout=PATIENCE)
    page.get_by_role("button", name="Pause enrich").click()
    said(page, "The stage is paused.")
    page.get_by_role("navigation").get_by_role("link", name="Workers").click()
    page.get_by_role("button", name="Resume enrich").click()
    said(page, "The stage runs again.")
    page.goto(address)
    page.get_by_role("link", name="posts", exact=True).click()
    page.locator("svg.graph a").filter(has_text="WAITING_FOR").click()
    page.get_by_role("link", name="review").click()
    page.get_by_label("Signal").fill("hurry")
    page.get_by_label("Payload, as JSON").fill('{"n": 12345678901234567890}')
    page.get_by_role("button", name="Send").click()
    said(page, "The signal was sent.")
    page.get_by_label("Move to").select_option("APPROVED")
    page.get_by_role("button", name="Move").click()
    said(page, "It was moved.")
    page.get_by_role("navigation").get_by_role("link", name="Dead jobs").click()
    page.get_by_role("button", name="Retry 1", exact=True).click()
    page.get_by_role("button", name="Retry 1 workflow").click()
    said(page, "It was done to all of them.")
    page.goto(f"{address}approvals?order=deadline")
    page.get_by_role("link", name="Edit first").click()
    page.get_by_text("Edit it").click()
    page.get_by_label("Total").fill("4")
    page.get_by_label("Reason").fill("a bit less")
    page.get_by_role("button", name="approve").click()
    said(page, "Your answer is kept.")
    page.goto(f"{address}workflow?pipeline=lamps&entity=lamp_0")
    page.get_by_role("button", name="Cancel it").click()
    said(page, "It was cancelled.")
    page.goto(f"{address}workflows?pipeline=lamps&status=OFF")
    page.get_by_role("link", name="move …").click()
    page.get_by_label("Move to").select_option("ON")
    page.get_by_role("button", name="Move 5 workflows").click()
    said(page, "It was done to all of them. (5)")
    assert wrong == []
    assert (status_of(full, "review"), status_of(full, "lamp_0"), status_of(full, "lamp_5")) == (
        "APPROVED",
        "GONE",
        "ON",
    )
    assert value(full, "SELECT metadata -> 'total' FROM outbox.workflow_states WHERE entity_id = 'order'") == 4
    assert value(full, "SELECT count(*) FROM outbox.dead_jobs") == 0


def test_names_with_two_spaces_are_found_and_moved_to(address: str, full: Conn, browser: Browser) -> None:
    odd: Pipeline[Any] = Pipeline("two  spaces", initial="OFF  NOW", final={"ON  NOW"})
    odd.allow("OFF  NOW", to="ON  NOW")
    deployed(full, odd).submit(full, "odd", {})
    page, wrong = watched(browser, address)
    page.goto(f"{address}workflows")
    page.get_by_label("Pipeline").select_option("two  spaces")
    page.get_by_role("button", name="Find").click()
    page.wait_for_url("**pipeline=two**")
    assert "entity=odd" in page.content()
    page.get_by_role("link", name="odd").click()
    page.get_by_role("button", name="Move").click()
    page.wait_for_load_state()
    assert "It was moved." in page.content()
    assert (status_of(full, "odd"), wrong) == ("ON  NOW", [])


def test_enter_in_a_field_gives_no_answer(
    address: str, full: Conn, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_LINK_KEYS", "k" * 32)
    token = approval_link(full, "orders", "order", person="ann", until=datetime.now(UTC) + timedelta(hours=1))
    page, wrong = watched(browser, address)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    question = value(full, "SELECT id FROM outbox.approvals WHERE entity_id = 'order'")
    for path in ("approvals?pipeline=orders", f"approvals/{question}", f"answer/{token}"):
        page.goto(address + path)
        page.get_by_label("Reason").fill("half a reas")
        page.get_by_label("Reason").press("Enter")
        assert page.evaluate("document.activeElement.value") == "half a reas", path
        assert sent == [], path
    page.get_by_role("button", name="reject").click()
    expect(page.get_by_text("This link was used to answer reject")).to_be_visible(timeout=PATIENCE)
    assert wrong == []


@pytest.mark.parametrize("javascript", [True, False])
def test_a_signed_link_works_in_the_browser_of_somebody_who_is_not_known(
    full: Conn, dsn: str, browser: Browser, javascript: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_LINK_KEYS", "k" * 32)
    until = datetime.now(UTC) + timedelta(hours=1)
    token = approval_link(full, "orders", "order", person="ann", until=until)
    with served(dashboard(dsn, identify=lambda request: None)) as address:
        page, wrong = watched(browser, address, java_script_enabled=javascript)
        page.goto(f"{address}answer/{token}")
        page.get_by_role("button", name="approve").click()
        expect(page.get_by_text("This link was used to answer approve")).to_be_visible(timeout=PATIENCE)
        page.context.close()
    assert wrong == []


def test_what_is_done_to_many_goes_on_by_itself_until_it_is_stopped(
    address: str, full: Conn, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "BATCH", 2)
    monkeypatch.setattr(bulk, "PATIENCE", 1e-9)
    page, wrong = watched(browser, address)
    page.goto(f"{address}bulk?act=move&pipeline=lamps")
    page.get_by_label("Move to").select_option("ON")
    page.get_by_role("button", name="Move 6 workflows").click()
    said(page, "It was done to all of them. (6)")
    asked = "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'OFF' AND pipeline = 'lamps'"
    assert value(full, asked) == 0
    page.goto(f"{address}bulk?act=move&pipeline=lamps&status=ON")
    page.get_by_label("Move to").select_option("OFF")
    begun: list[Route] = []

    def hold(route: Route) -> None:
        begun.append(route)
        if len(begun) == 1:
            route.continue_()

    page.route("**/bulk", hold)
    page.get_by_role("button", name="Move 6 workflows").click()
    page.get_by_role("link", name="Stop").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Workflows", timeout=PATIENCE)
    assert value(full, asked) == 2
    assert wrong == []


def test_an_open_page_follows_and_keeps_what_is_being_typed(address: str, full: Conn, browser: Browser) -> None:
    page, wrong = watched(browser, address, viewport={"width": 800, "height": 300})
    page.goto(f"{address}workflow?pipeline=posts&entity=review")
    expect(page.locator("time").first).to_contain_text("20", timeout=PATIENCE)
    page.get_by_label("Signal").fill("half typed")
    page.evaluate("scrollTo(0, 200)")
    expect(page.get_by_role("button", name="Pause: keep this page as it is")).to_be_visible(timeout=PATIENCE)
    full.execute("UPDATE outbox.workflow_states SET current_status = 'REJECTED' WHERE entity_id = 'review'")
    expect(page.locator("#story")).to_contain_text("WAITING_FOR_REVIEW → REJECTED", timeout=PATIENCE)
    assert page.get_by_label("Signal").input_value() == "half typed"
    assert page.evaluate("scrollY") == 200
    page.goto(address)
    full.execute("INSERT INTO outbox.pauses (pipeline, stage, paused_by) VALUES ('posts', 'act', 'ann')")
    expect(page.locator("#pipelines")).to_contain_text("paused", timeout=PATIENCE)
    page.get_by_role("button", name="Pause: keep this page as it is").click()
    expect(page.get_by_role("button", name="Follow what happens")).to_be_visible(timeout=PATIENCE)
    assert wrong == []


def test_what_was_selected_is_brought_up_to_date_when_it_is_not_any_more(
    address: str, full: Conn, browser: Browser
) -> None:
    page, wrong = watched(browser, address)
    page.goto(f"{address}workflow?pipeline=lamps&entity=lamp_0")
    why, button = page.locator("#why"), page.get_by_role("button", name="Pause: keep this page as it is")
    expect(button).to_be_visible(timeout=PATIENCE)
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#why .entity'))")
    full.execute("UPDATE outbox.workflow_states SET current_status = 'ON' WHERE entity_id = 'lamp_0'")
    expect(page.locator("#story")).to_contain_text("OFF → ON", timeout=PATIENCE)
    expect(why).to_contain_text("lamps: OFF")
    page.evaluate("getSelection().removeAllRanges()")
    expect(why).to_contain_text("lamps: ON", timeout=PATIENCE)
    why.get_by_role("link", name="lamps").focus()
    full.execute("UPDATE outbox.workflow_states SET current_status = 'GONE' WHERE entity_id = 'lamp_0'")
    expect(page.locator("#story")).to_contain_text("ON → GONE", timeout=PATIENCE)
    button.focus()
    expect(why).to_contain_text("lamps: GONE", timeout=PATIENCE)
    assert wrong == []


def test_a_page_that_a_proxy_refuses_for_a_while_follows_again(
    full: Conn, dsn: str, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EVERY", "BUSY"):
        monkeypatch.setattr(live, name, 0.05)
    mounted, down = dashboard(dsn), [False]

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        await (PlainTextResponse("bad gateway", 502) if down[0] else mounted)(scope, receive, send)

    with served(proxy) as address:
        page = browser.new_page()
        page.clock.install()
        page.goto(f"{address}workflow?pipeline=lamps&entity=lamp_0")
        page.get_by_role("button", name="Pause: keep this page as it is").click(timeout=PATIENCE)
        down[0] = True
        page.get_by_role("button", name="Follow what happens").click()
        expect(page.locator("#stale")).to_contain_text("is not up to date", timeout=PATIENCE)
        down[0] = False
        page.clock.fast_forward(10_000)
        expect(page.locator("#stale")).to_be_hidden(timeout=PATIENCE)
        full.execute("UPDATE outbox.workflow_states SET current_status = 'ON' WHERE entity_id = 'lamp_0'")
        expect(page.locator("#why")).to_contain_text("lamps: ON", timeout=PATIENCE)
        page.context.close()


def test_the_keyboard_leads_everywhere(address: str, full: Conn, browser: Browser) -> None:
    page, wrong = watched(browser, address)
    page.goto(address)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused(timeout=PATIENCE)
    page.keyboard.press("g")
    page.keyboard.press("w")
    expect(page.get_by_role("heading", level=1)).to_have_text("Workflows", timeout=PATIENCE)
    page.keyboard.press("/")
    expect(page.get_by_label("Entity begins with")).to_be_focused(timeout=PATIENCE)
    page.keyboard.type("gd/")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("entity=gd"))
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways(
    address: str, full: Conn, browser: Browser, scheme: Any
) -> None:
    page, wrong = watched(browser, address, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    for path in (
        "", "workflows", "workflow?pipeline=posts&entity=review", "approvals", "dead", "workers", "bulk?act=cancel&dead=1",
    ):  # fmt: skip
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    assert wrong == []


@pytest.mark.node
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_keeps_anybody_from_using_a_page(
    address: str, full: Conn, browser: Browser, scheme: Any
) -> None:
    source, question = node.axe(), value(full, "SELECT id FROM outbox.approvals WHERE ended_at IS NULL")
    page = browser.new_context(color_scheme=scheme, bypass_csp=True).new_page()
    found: dict[str, Any] = {}
    for path in (
        "", "pipeline?pipeline=posts", "workflows", "workflow?pipeline=posts&entity=broken", "approvals",
        f"approvals/{question}", "dead", "messages", "workers", "doctor", "bulk?act=move&pipeline=lamps", "nothing",
    ):  # fmt: skip
        page.goto(address + path)
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        page.evaluate(source)
        result = page.evaluate("axe.run()")
        assert result["passes"], path
        for each in result["violations"]:
            if each["impact"] in ("serious", "critical"):
                found[f"{path}: {each['id']}"] = [part["html"] for part in each["nodes"]]
    assert found == {}


def test_a_form_on_another_site_changes_nothing(address: str, full: Conn, browser: Browser) -> None:
    page = browser.new_page()
    form = f"""<form method=post action="{address}workflow/move"><input name=pipeline value=posts>
               <input name=entity value=review><input name=status value=APPROVED><button>Win</button></form>"""
    with served(foreign(form)) as elsewhere:
        page.goto(elsewhere.replace("127.0.0.1", "localhost"))
        page.get_by_role("button").click()
        expect(page.locator("body")).to_contain_text("403: another site has sent this", timeout=PATIENCE)
        page.goto(elsewhere)
        page.get_by_role("button").click()
        expect(page.locator("body")).to_contain_text("403: another site has sent this", timeout=PATIENCE)
    assert status_of(full, "review") == "WAITING_FOR_REVIEW"


def foreign(form: str) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": form.encode()})

    return app


@contextmanager
def shop_of_its_own(server: PostgresServer) -> Iterator[str]:
    dsn = make_database(server, "shop")
    migrations.apply(dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        deployed(conn, posts)
        posts.submit(conn, "new", Post())
    yield dsn


def test_a_server_that_stops_restarts_or_freezes_under_open_pages_is_said_and_they_recover(
    make_server: Callable[[str], PostgresServer], browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, seconds in ((live, "EVERY", 0.1), (live, "BUSY", 0.1), (sessions, "GRACE", 0.2)):
        monkeypatch.setattr(module, name, seconds)
    server = make_server("18")
    with shop_of_its_own(server) as dsn, served(dashboard(dsn, statement_timeout=0.5)) as address:
        overview, one = (browser.new_page() for _ in range(2))
        overview.goto(address)
        one.goto(f"{address}workflow?pipeline=posts&entity=new")
        for stop, start in (
            (server.stop, server.start),
            (lambda: server.send(signal.SIGSTOP), lambda: server.send(signal.SIGCONT)),
        ):
            expect(overview.locator("#pipelines")).to_contain_text("RECEIVED", timeout=PATIENCE)
            expect(one.locator("#stale")).to_be_hidden(timeout=PATIENCE)
            stop()
            try:
                expect(overview.locator("#pipelines")).to_contain_text(
                    re.compile("can't be reached|given up"), timeout=PATIENCE
                )
                expect(one.locator("#stale")).to_contain_text("is not up to date", timeout=PATIENCE)
                expect(one.locator("#story")).to_contain_text("RECEIVED", timeout=PATIENCE)
            finally:
                start()
        expect(overview.locator("#pipelines")).to_contain_text("RECEIVED", timeout=PATIENCE)
        expect(one.locator("#stale")).to_be_hidden(timeout=PATIENCE)


def test_the_command_shows_it_in_a_browser(shop: Conn, spawn: Callable[..., Process], browser: Browser) -> None:
    process = spawn("ui", "--port", "0", "--operate", "--as", "sarah")
    assert process.popen.stdout is not None
    address = process.popen.stdout.readline().decode().strip()
    assert address, process.text()
    page, wrong = watched(browser, address)
    page.goto(address)
    expect(page.get_by_text("sarah, may decide, look, operate")).to_be_visible(timeout=PATIENCE)
    assert wrong == []
