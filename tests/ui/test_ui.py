"""outbox ui: the page for one person on this machine, and for nobody else unless they insist."""

from __future__ import annotations

import re
import signal
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from kit.browsing import OURS
from kit.commands import Outbox
from kit.pipelines import status_of, value
from kit.servers import Process, wait_for

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
MOVE = {"pipeline": "posts", "entity": "review", "status": "APPROVED"}


def shown(process: Process) -> str:
    """Returns the address that the command prints."""
    assert process.popen.stdout is not None
    found = process.popen.stdout.readline().decode().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", found), process.text()
    return found


def test_the_page_is_shown_to_this_machine_and_has_buttons_only_on_request(shop: Conn, spawn: Spawn) -> None:
    process = spawn("ui", "--port", "0")
    address = shown(process)
    assert "WAITING_FOR_REVIEW" in httpx.get(address).text
    assert httpx.get(address, headers={"host": "evil.example"}).status_code == 403
    assert httpx.post(f"{address}workflow/move", data=MOVE, headers=OURS).status_code == 403
    process.send(signal.SIGINT)
    wait_for(lambda: not process.running, what="Ctrl-C ends it")
    operating = spawn("ui", "--port", "0", "--operate", "--as", "sarah")
    address = shown(operating)
    assert httpx.get(address, headers={"host": "evil.example"}).status_code == 403
    assert httpx.post(f"{address}workflow/move", data=MOVE, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert status_of(shop, "review") == "WAITING_FOR_REVIEW"
    assert httpx.post(f"{address}workflow/move", data=MOVE, headers=OURS).status_code == 303
    assert value(shop, "SELECT actor FROM outbox.state_changes ORDER BY at DESC LIMIT 1") == "sarah"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "shop.example", "127.0.0.1.evil.example"])
def test_an_address_that_others_reach_is_refused_with_the_reason(outbox: Outbox, host: str) -> None:
    done = outbox("ui", "--host", host, "--port", "0", code=2)
    assert "doesn't ask who they are" in done.err
    assert "--insecure" in done.err


def test_without_its_packages_it_says_what_to_install(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = outbox("ui", code=1)
    assert "pip install 'outbox-engine[ui]'" in done.err


def test_the_page_is_small_and_loads_nothing_from_elsewhere() -> None:
    folder = Path(__file__).parents[2] / "outbox" / "ui"
    found = [each for each in folder.rglob("*") if each.is_file() and "__pycache__" not in each.parts]
    assert sum(len(zlib.compress(each.read_bytes())) for each in found) < 80_000, "bytes in the wheel"
    for each in found:
        if each.suffix in (".html", ".css", ".js"):
            assert not re.search(r"(https?:)?//[a-z]", each.read_text("utf-8").replace("// ", "")), each
