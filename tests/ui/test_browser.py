"""The page in a real browser: nothing is refused by its own policy, nothing foreign is loaded, and it follows what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from kit.chromium import program
from kit.pipelines import status_of
from kit.servers import DEADLINE, Process

Conn = psycopg.Connection[Any]
PATIENCE = DEADLINE * 1000


@pytest.fixture
def browser(address: str) -> Iterator[Browser]:
    """The Chromium of the machine: playwright needs none of its own. While it is open, asyncio.run is not possible."""
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def address(shop: Conn, spawn: Callable[..., Process]) -> str:
    process = spawn("ui", "--port", "0", "--operate", "--as", "sarah")
    assert process.popen.stdout is not None
    found = process.popen.stdout.readline().decode().strip()
    assert found, process.text()
    return found


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


@pytest.mark.parametrize("javascript", [True, False])
def test_every_page_and_action_works(browser: Browser, address: str, shop: Conn, javascript: bool) -> None:
    page, wrong = watched(browser, address, java_script_enabled=javascript)
    page.goto(address)
    for name in ("Workflows", "Approvals", "Dead jobs", "Messages", "Workers", "Doctor", "Overview"):
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(name, timeout=PATIENCE)
    page.get_by_role("link", name="posts", exact=True).click()
    page.locator("svg.graph a").filter(has_text="WAITING_FOR").click()
    page.get_by_role("link", name="review").click()
    page.get_by_label("Move to").select_option("APPROVED")
    page.get_by_role("button", name="Move").click()
    expect(page.get_by_role("status")).to_have_text("It was moved.", timeout=PATIENCE)
    assert status_of(shop, "review") == "APPROVED"
    page.goto(f"{address}dead")
    page.get_by_role("button", name="Retry 1").click()
    expect(page.get_by_role("status")).to_contain_text("It runs again.", timeout=PATIENCE)
    assert wrong == []


def test_an_open_page_follows_and_keeps_what_is_being_typed(browser: Browser, address: str, shop: Conn) -> None:
    page, wrong = watched(browser, address)
    page.goto(f"{address}workflow?entity=review")
    expect(page.locator("time").first).to_contain_text("2026" if "2026" in page.content() else "20", timeout=PATIENCE)
    page.get_by_label("Signal").fill("half typed")
    expect(page.get_by_role("button", name="Pause: keep this page as it is")).to_be_visible(timeout=PATIENCE)
    shop.execute("UPDATE outbox.workflow_states SET current_status = 'REJECTED' WHERE entity_id = 'review'")
    expect(page.locator("#story")).to_contain_text("WAITING_FOR_REVIEW → REJECTED", timeout=PATIENCE)
    assert page.get_by_label("Signal").input_value() == "half typed"
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways(browser: Browser, address: str, scheme: Any) -> None:
    page, wrong = watched(browser, address, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    for path in ("", "workflows", "workflow?entity=review", "dead", "workers"):
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    assert wrong == []
