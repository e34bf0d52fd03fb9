"""Measures a submit through each kind of connection that an application may hold, beside psycopg's.

`python -m bench.connections --help`
"""

from __future__ import annotations

import asyncio
import inspect
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import click

from .kit import report
from .kit.app import Post, posts
from .kit.database import machine, server
from .kit.doors import DOORS, FIRST, Opened
from .kit.steps import SIZE, made

IN_TRANSACTION = 5
"""Submits of one transaction, which is one turn. Its COMMIT is not measured: it is the same for all."""


@click.command()
@click.option("--calls", default=400, show_default=True, help="Submits of a connection in each round.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(calls: int, rounds: int, json_file: Path | None) -> None:
    """Measure all kinds of connections in turn, a few calls of each at a time, so that all meet the same machine."""
    items = made(calls, SIZE)
    found: dict[str, list[tuple[float, float]]] = {}
    with server() as postgres:
        for number in range(1, rounds + 1):
            report.progress(f"round {number} of {rounds}: {len(DOORS)} kinds of connections")
            with postgres.database() as dsn:
                for kind, medians in asyncio.run(one_round(dsn, items)).items():
                    found.setdefault(kind, []).append(medians)
        where = machine(postgres.dsn)
    figures: dict[str, dict[str, float]] = {}
    for kind, each in found.items():
        beside = [
            (submit - empty) / (first - nothing)
            for (submit, empty), (first, nothing) in zip(each, found[FIRST], strict=True)
        ]
        figures |= {
            f"{kind}: submit, ms": report.spread([submit for submit, _ in each]),
            f"{kind}: empty statement, ms": report.spread([empty for _, empty in each]),
            f"{kind}: what submit adds, {FIRST} = 1": report.spread(beside),
        }
    report.show("connections", {"calls": calls, "rounds": rounds}, figures, where, json_file)


async def one_round(dsn: str, items: list[Post]) -> dict[str, tuple[float, float]]:
    """Returns the median ms of a submit and of an empty statement, by kind. Each transaction is another kind's turn."""
    spent: dict[str, tuple[list[float], list[float]]] = {}
    async with AsyncExitStack() as closing:
        opened = {kind: await _entered(closing, opening(dsn)) for kind, opening in DOORS.items()}
        for start in range(0, len(items), IN_TRANSACTION):
            for kind, (conn, empty, commit) in opened.items():
                submits, empties = spent.setdefault(kind, ([], []))
                await _done(empty)  # a session takes its connection, and begins
                for number, item in enumerate(items[start : start + IN_TRANSACTION], start):
                    empties.append(await _ms(empty))
                    submits.append(await _ms(_submitting(conn, f"{kind} {number}", item)))
                await _done(commit)
        _check(opened[FIRST][0], len(items) * len(DOORS))
    return {
        kind: (statistics.median(submits), statistics.median(empties)) for kind, (submits, empties) in spent.items()
    }


def _submitting(conn: Any, entity_id: str, item: Post) -> Callable[[], Any]:
    return lambda: posts.submit(conn, entity_id, item)


async def _entered(closing: AsyncExitStack, manager: Any) -> Opened:
    if isinstance(manager, AbstractAsyncContextManager):
        opened: Opened = await closing.enter_async_context(manager)
        return opened
    return closing.enter_context(manager)  # type: ignore[no-any-return]


async def _done(call: Callable[[], Any]) -> Any:
    found = call()
    return await found if inspect.isawaitable(found) else found


async def _ms(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    await _done(call)
    return 1000 * (time.perf_counter() - began)


def _check(conn: Any, expected: int) -> None:
    """Raises unless each workflow is there with its job, whichever way it came."""
    counts = conn.execute("SELECT count(*), (SELECT count(*) FROM outbox.jobs) FROM outbox.workflow_states").fetchone()
    if counts != (expected, expected):
        raise click.ClickException(f"the books are wrong: workflows and jobs are {counts}, not {expected} each")


if __name__ == "__main__":
    main()
