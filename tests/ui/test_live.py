"""Open pages are told what has changed: by one reader for all, and by none if no page is open."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from kit.pipelines import value
from kit.servers import DEADLINE
from outbox.operations.sessions import Sessions
from outbox.ui import live
from outbox.ui.live import Live, events
from outbox.ui.shared import Shared

Conn = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.01)
    monkeypatch.setattr(live, "BUSY", 0.01)


def asked(query: bytes = b"") -> Request:
    return Request({"type": "http", "method": "GET", "path": "/events", "query_string": query, "headers": []})


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def test_all_open_pages_are_told_by_one_reader_which_ends_with_the_last(shop: Conn, dsn: str) -> None:
    async def watched() -> None:
        reads = Sessions(dsn, "ui")
        told = Live(reads)
        pages = [told.changes() for _ in range(30)]
        assert await asyncio.gather(*(anext(page) for page in pages)) == [["opened"]] * 30
        waiting = [asyncio.ensure_future(anext(page)) for page in pages]
        await until(lambda: told.looks >= 2)
        pids = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox ui' AND datname = current_database()"
        assert shop.execute(pids).fetchone() == (1,), "a session for all pages"
        shop.execute("INSERT INTO outbox.pauses (pipeline, stage, paused_by) VALUES ('posts', 'act', 'ann')")
        assert await asyncio.gather(*waiting) == [["actions"]] * 30
        for page in pages:
            await page.aclose()  # type: ignore[attr-defined]
        looks = told.looks
        await asyncio.sleep(0.05)
        assert told.looks == looks, "nobody looks, nothing is asked"
        page = told.changes()
        following = asyncio.ensure_future(anext(page))
        await until(lambda: told.looks >= looks + 2)
        following.cancel()
        reads.close()

    asyncio.run(watched())


def test_a_database_that_goes_away_and_comes_back_is_told(shop: Conn, dsn: str) -> None:
    async def watched() -> None:
        reads = Sessions(dsn, "ui", patience=0.3)
        told = Live(reads)
        page = told.changes()
        assert await anext(page) == ["opened"]
        first = asyncio.ensure_future(anext(page))
        with psycopg.connect(dsn) as other:
            other.execute("LOCK TABLE outbox.pauses")
            assert await first == ["database"]
        assert "database" in await anext(page)
        await page.aclose()  # type: ignore[attr-defined]
        reads.close()

    asyncio.run(watched())


def test_a_page_that_closes_ends_its_stream(shop: Conn, dsn: str) -> None:
    async def watched() -> None:
        reads = Sessions(dsn, "ui")
        told = Live(reads)
        sent: list[dict[str, Any]] = []
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope: dict[str, Any] = {"type": "http", "method": "GET", "headers": [], "asgi": {"spec_version": "2.3"}}
        answer = await events(told, asked())
        streaming = asyncio.ensure_future(answer(scope, receive, send))
        await until(lambda: told.looks >= 2)
        shop.execute("INSERT INTO outbox.pauses (pipeline, stage, paused_by) VALUES ('posts', 'act', 'ann')")
        await until(lambda: any(each.get("body") == b"event: changed\ndata: actions\n\n" for each in sent))
        gone.set()
        await streaming
        await until(lambda: told._reader is None)
        reads.close()

    asyncio.run(watched())


def test_not_more_pages_are_told_than_a_process_can(shop: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST", 0)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(events(Live(Sessions(dsn, "ui")), asked()))
    assert refused.value.status_code == 503


def test_a_page_of_one_workflow_is_told_of_this_one_and_of_no_other(shop: Conn, dsn: str) -> None:
    async def watched() -> None:
        reads = Sessions(dsn, "ui")
        told = Live(reads)
        review, new = (
            told.changes(str(value(shop, "SELECT id FROM outbox.workflow_states WHERE entity_id = %s", name)))
            for name in ("review", "new")
        )
        for page in (review, new):
            assert await anext(page) == ["opened"]
        first, other = asyncio.ensure_future(anext(review)), asyncio.ensure_future(anext(new))
        shop.execute("UPDATE outbox.workflow_states SET current_status = 'REJECTED' WHERE entity_id = 'review'")
        assert await first == ["workflow"]
        assert not other.done()
        shop.execute("INSERT INTO outbox.signals (pipeline, entity_id, name) VALUES ('posts', 'new', 'hurry')")
        assert await other == ["workflow"]
        for page in (review, new):
            await page.aclose()  # type: ignore[attr-defined]
        reads.close()

    asyncio.run(watched())


def test_what_is_no_id_of_a_workflow_is_refused(dsn: str) -> None:
    with pytest.raises(HTTPException) as refused:
        asyncio.run(events(Live(Sessions(dsn, "ui")), asked(b"workflow=all")))
    assert refused.value.status_code == 400


def test_what_open_pages_ask_after_a_change_is_asked_once(shop: Conn, dsn: str) -> None:
    async def watched() -> None:
        reads, shared = Sessions(dsn, "ui"), Shared[int]()
        told = Live(reads, shared)
        page = told.changes()
        await anext(page)
        asks = 0

        async def ask() -> int:
            nonlocal asks
            asks += 1
            await asyncio.sleep(0)
            return asks

        assert await asyncio.gather(*(shared.get("overview", ask()) for _ in range(50))) == [1] * 50
        assert await shared.get("another", ask()) == 2
        shop.execute("INSERT INTO outbox.pauses (pipeline, stage, paused_by) VALUES ('posts', 'act', 'ann')")
        assert await anext(page) == ["actions"]
        assert await asyncio.gather(*(shared.get("overview", ask()) for _ in range(50))) == [3] * 50
        await page.aclose()  # type: ignore[attr-defined]
        reads.close()

    asyncio.run(watched())


def test_a_failure_is_not_kept_and_who_leaves_first_takes_nothing_from_others() -> None:
    async def asked_for() -> None:
        shared = Shared[int]()
        going = asyncio.Event()

        async def fail() -> int:
            raise RuntimeError

        async def answer() -> int:
            await going.wait()
            return 1

        with pytest.raises(RuntimeError):
            await shared.get("a", fail())
        first = asyncio.ensure_future(shared.get("a", answer()))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(shared.get("a", answer()))
        await asyncio.sleep(0)
        first.cancel()
        going.set()
        assert await second == 1

    asyncio.run(asked_for())
