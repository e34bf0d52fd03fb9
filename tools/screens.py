"""Takes the pictures of the web page in docs/: of a run of the demo, by the Chromium of this machine. See `make screens`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from kit.chromium import program
from kit.servers import wait_for

WIDTH, HEIGHT = 1180, 760
COLOURS = 128
"""Of a picture: text and lines need no more, and the file is a third."""

WORKING = "SELECT count(*) > 15 FROM outbox.workflow_states WHERE current_status = 'COMPLETED'"
WAITING = """
    SELECT count(*) > 3 AND NOT EXISTS (
        SELECT FROM outbox.workflow_states WHERE current_status IN ('RECEIVED', 'ENRICHED', 'APPROVED'))
    FROM outbox.workflow_states WHERE current_status = 'WAITING_FOR_REVIEW'
"""


@contextmanager
def demo() -> Iterator[tuple[str, str]]:
    """Runs the demo with its page; yields the address of the page, and the DSN."""
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # as root, the server runs as another user
        env = {name: text for name, text in os.environ.items() if not name.startswith("OUTBOX_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "outbox", "demo", "--ui"], env={**env, "OUTBOX_HOME": f"{folder}/home"},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.search(r"(http\S+/)approvals", line) for line in process.stdout)))
            socket = Path(f"{folder}/home/data/postmaster.pid").read_text().splitlines()[4]
            yield found[1], f"postgresql://postgres@/outbox?host={socket}"
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def take(page: Page, to: Path, height: int | None = None) -> None:
    """Writes a picture of what the page shows now, down to its end or to a height."""
    end = int(page.evaluate("document.body.scrollHeight"))
    page.set_viewport_size({"width": page.viewport_size["width"], "height": min(height or end, end)})
    page.screenshot(path=to)
    with Image.open(to) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(to, optimize=True)
    page.set_viewport_size({"width": page.viewport_size["width"], "height": HEIGHT})


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with demo() as (address, dsn), psycopg.connect(dsn, autocommit=True) as conn, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        wait_for(lambda: conn.execute(WORKING).fetchone() == (True,), what="posts are on their way")
        page.goto(address)
        take(page, folder / "overview.png")
        wait_for(lambda: conn.execute(WAITING).fetchone() == (True,), what="only reviews are left")
        page.goto(f"{address}pipeline?pipeline=posts")
        take(page, folder / "pipeline.png")
        page.goto(f"{address}approvals")
        take(page, folder / "approvals.png", HEIGHT)
        page.goto(f"{address}workflows?pipeline=posts&status=WAITING_FOR_REVIEW")
        page.locator("a[href*='workflow?']").first.click()
        take(page, folder / "workflow.png", 1000)
        phone = browser.new_page(viewport={"width": 390, "height": HEIGHT}, color_scheme="dark")
        phone.goto(f"{address}approvals")
        take(phone, folder / "phone.png", HEIGHT)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
