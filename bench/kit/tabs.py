"""Opens pages of `outbox ui` as tabs of a browser do: each follows what happens, and is read again after a change."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import click

from .database import environment

FOLLOWS = re.compile(rb'data-events="([^"]*)" data-follows="([^"]*)"')
SOON = 0.25
"""Seconds for which the page's script waits for further changes."""


@dataclass
class Tabs:
    """What open tabs have done: how long each answer took, in ms, and what was wrong with one."""

    took: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@contextmanager
def page(dsn: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs `outbox ui` as a process of its own. Yields it with its address."""
    command = [sys.executable, "-m", "outbox", "ui", "--port", "0", "--operate", "--as", "bench"]
    with subprocess.Popen(command, env=environment(dsn), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise click.ClickException("outbox ui has not started")
            yield process, address
        finally:
            process.terminate()


@contextmanager
def opened(address: str, paths: Sequence[str]) -> Iterator[Tabs]:
    """Keeps a tab open for each path."""
    tabs, loop, ready = Tabs(), asyncio.new_event_loop(), threading.Event()

    async def all_of_them() -> None:
        waiting = len(paths)

        def is_open() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                ready.set()

        await asyncio.gather(*(_tab(address, path, tabs, is_open) for path in paths), return_exceptions=True)

    def run() -> None:
        asyncio.set_event_loop(loop)
        task = loop.create_task(all_of_them())
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        if not ready.wait(60):
            raise click.ClickException(f"the tabs have not opened: {tabs.wrong[:3]}")
        yield tabs
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join()
        loop.close()
    if tabs.wrong:
        raise click.ClickException(f"{len(tabs.wrong)} answers were wrong: {tabs.wrong[:3]}")


async def _tab(address: str, path: str, tabs: Tabs, is_open: object) -> None:
    first = await _get(address, path, tabs)
    found = FOLLOWS.search(first)
    if found is None:
        tabs.wrong.append(f"{path} follows nothing")
        return
    events, follows = found[1].decode().replace("&amp;", "&"), {"opened", "database", *found[2].decode().split()}
    reader, writer = await _ask(address, events, "accept: text/event-stream\r\n")
    assert callable(is_open)
    is_open()
    try:
        async for line in reader:
            if line.startswith(b"data: ") and follows & set(line[6:].decode().strip().split(",")):
                await asyncio.sleep(SOON)
                await _get(address, path, tabs, "x-outbox-follows: 1\r\n")
    finally:
        writer.close()


async def _get(address: str, path: str, tabs: Tabs, headers: str = "") -> bytes:
    begun = time.monotonic()
    reader, writer = await _ask(address, f"/{path}", headers)
    text = await reader.read()
    writer.close()
    tabs.took.append((time.monotonic() - begun) * 1000)
    if not text.startswith(b"HTTP/1.1 200") or b"and was given up" in text:
        tabs.wrong.append(f"{path}: {text[:200]!r}")
    return text


async def _ask(address: str, target: str, headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    at = urlsplit(address)
    assert at.hostname
    reader, writer = await asyncio.open_connection(at.hostname, at.port, limit=2**24)
    close = "" if "event-stream" in headers else "connection: close\r\n"
    writer.write(f"GET {target} HTTP/1.1\r\nhost: {at.netloc}\r\n{headers}{close}\r\n".encode())
    await writer.drain()
    return reader, writer
