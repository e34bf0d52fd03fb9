"""Open pages are told what has changed: by one reader for all, and by none if no page is open."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from kit.servers import DEADLINE
from outbox.ui import live
from outbox.ui.live import Live, events
from outbox.ui.sessions import Sessions

Conn = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.01)


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def test_all_open_pages_are_told_by_one_reader_which_ends_with_the_last(shop: Conn, dsn: str) -> None:
    async def watched() -> None:
        reads = Sessions(dsn, "ui")
        told = Live(reads)
        pages = [told.changes() for _ in range(30)]
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
        first = asyncio.ensure_future(anext(page))
        await until(lambda: told.looks >= 2)
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
        answer = await events(told, None)  # type: ignore[arg-type]
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
    from starlette.exceptions import HTTPException

    with pytest.raises(HTTPException) as refused:
        asyncio.run(events(Live(Sessions(dsn, "ui")), None))  # type: ignore[arg-type]
    assert refused.value.status_code == 503
