"""Measures the web page: each page among ten million workflows, and what open tabs cost Postgres and the engine.

`python -m bench.ui --help`
"""

from __future__ import annotations

import http.client
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlsplit

import click
import psutil
import psycopg

from outbox.operations import look

from .kit import report
from .kit.database import Server, busy_seconds, machine, server
from .kit.steps import steps
from .kit.tabs import opened, page
from .lists import COMMON_KIND, beside, fill

SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'outbox ui%' AND datname = current_database()"
KIND = quote(COMMON_KIND)
PAGES = {
    "overview": "",
    "pipeline": "pipeline?pipeline=lists",
    "workflows, all": "workflows",
    "workflows of a status": "workflows?pipeline=lists&status=WAITING",
    "workflows of a final status": "workflows?pipeline=lists&status=DONE",
    "workflows, older": "workflows?pipeline=lists&older=30d",
    "workflows of an entity prefix": "workflows?entity=post_1",
    "workflows, dead": "workflows?dead=1",
    "workflows of a kind of error": f"workflows?pipeline=lists&error={KIND}",
    "workflows that ask somebody": "workflows?assignee=person_7",
    "a workflow, dead": "workflow?pipeline=lists&entity=post_10",
    "a workflow that asks": "workflow?pipeline=lists&entity=post_101",
    "approvals": "approvals",
    "approvals by deadline": "approvals?order=deadline",
    "approvals of somebody, by deadline": "approvals?assignee=person_7&order=deadline",
    "a question": "approvals/{question}",
    "dead jobs": "dead",
    "messages": "messages",
    "workers": "workers",
    "doctor": "doctor",
    "the number before it is done to many": f"bulk?act=retry&dead=1&pipeline=lists&error={KIND}",
}
FOLLOWING = [path for name, path in PAGES.items() if not name.startswith(("a question", "the number"))]
"""The pages that follow what happens."""


@click.command()
@click.option("--workflows", default=10_000_000, show_default=True, help="Workflows in the tables.")
@click.option("--times", default=50, show_default=True, help="How often each page is read.")
@click.option("--tabs", default=50, show_default=True, help="Open tabs.")
@click.option("--seconds", default=30.0, show_default=True, help="How long the open tabs are watched.")
@click.option("--jobs", default=60_000, show_default=True, help="Workflows of a run of the engine.")
@click.option("--rounds", default=10, show_default=True, help="Runs of the engine, without and with an open page.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
@report.svg_option
def main(
    workflows: int, times: int, tabs: int, seconds: float, jobs: int, rounds: int, json_file: Path | None,
    svg_file: Path | None,
) -> None:  # fmt: skip
    """Read each page beside a working engine, watch open tabs, and run the engine beside an open page."""
    found: dict[str, list[float]] = {}
    with server() as postgres:
        with postgres.database() as dsn:
            fill(dsn, workflows)
            with page(dsn) as (process, address):
                with beside(postgres, dsn):
                    for name, samples in read(dsn, address, times).items():
                        found[f"{name}: p50 ms"] = [report.percentile(samples, 0.5)]
                        found[f"{name}: p95 ms"] = [report.percentile(samples, 0.95)]
                    report.progress(f"{tabs} tabs beside a working engine")
                    found |= watched(dsn, process.pid, address, tabs, seconds, "beside a working engine")
                report.progress(f"{tabs} tabs, nothing happens")
                found |= watched(dsn, process.pid, address, tabs, seconds, "nothing happens")
        found |= compared(postgres, jobs, rounds)
        settings = {"workflows": workflows, "times": times, "tabs": tabs, "jobs": jobs, "rounds": rounds}
        figures = {name: report.spread(values) for name, values in found.items()}
        report.show("ui", settings, figures, machine(postgres.dsn), json_file, svg_file)


def read(dsn: str, address: str, times: int) -> dict[str, list[float]]:
    """Returns the ms of each page, from the request to the last byte. A page with a part that is late is an error."""
    with psycopg.connect(dsn) as conn:
        question = look.approvals(conn, limit=1)[0]["id"]
    at = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    found: dict[str, list[float]] = {}
    for name, path in PAGES.items():
        report.progress(name)
        for _ in range(times):
            begun = time.monotonic()
            at.request("GET", f"/{path.format(question=question)}")
            answer = at.getresponse()
            text = answer.read()
            found.setdefault(name, []).append((time.monotonic() - begun) * 1000)
            if answer.status != 200 or b"and was given up" in text:
                raise click.ClickException(f"{name}: {answer.status} {text[:2000].decode()}")
    at.close()
    return found


def watched(dsn: str, pid: int, address: str, tabs: int, seconds: float, when: str) -> dict[str, list[float]]:
    """Returns what so many open tabs cost."""
    paths = [FOLLOWING[number % len(FOLLOWING)] for number in range(tabs)]
    process, most = psutil.Process(pid), 0.0
    with opened(address, paths) as done, psycopg.connect(dsn, autocommit=True) as conn:
        time.sleep(min(seconds, 10.0))  # until each has asked for itself once more
        sessions = [number for (number,) in conn.execute(SESSIONS)]
        before, own, asked = sum(map(busy_seconds, sessions)), busy_seconds(pid), len(done.took)
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            most = max(most, process.memory_info().rss / 2**20)
            time.sleep(0.2)
        took = time.monotonic() - begun
        if [number for (number,) in conn.execute(SESSIONS)] != sessions:
            raise click.ClickException("the page has other sessions than before")
        theirs, own = sum(map(busy_seconds, sessions)) - before, busy_seconds(pid) - own
        shared = process.memory_full_info().pss / 2**20
        asked = len(done.took) - asked
    return {
        f"{tabs} tabs, {when}: Postgres, % of a core": [theirs / took * 100],
        f"{tabs} tabs, {when}: the page's process, % of a core": [own / took * 100],
        f"{tabs} tabs, {when}: its memory (RSS), MB": [most],
        f"{tabs} tabs, {when}: its share of it (PSS), MB": [shared],
        f"{tabs} tabs, {when}: pages asked again/s": [asked / took],
    }


def compared(postgres: Server, jobs: int, rounds: int) -> dict[str, list[float]]:
    """Returns the steps/s of a worker, without the page and with it open in a tab, and their ratio in each round."""
    alone: list[float] = []
    beside_it: list[float] = []
    for number in range(1, rounds + 1):
        report.progress(f"round {number} of {rounds}: the engine without and with an open page")
        for is_open in (False, True) if number % 2 else (True, False):
            with postgres.database() as dsn, ExitStack() as stack:
                if is_open:
                    _, address = stack.enter_context(page(dsn))
                    stack.enter_context(opened(address, [""]))
                (beside_it if is_open else alone).append(steps(dsn, jobs))
    return {
        "without the page, steps/s": alone,
        "with the page open, steps/s": beside_it,
        "with the page open : without": [b / a for a, b in zip(alone, beside_it, strict=True)],
    }


if __name__ == "__main__":
    main()
