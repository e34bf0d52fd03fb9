"""The demo with its page, on which a person reviews."""

import json
import re
import signal
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from urllib.parse import urljoin

import httpx
import psycopg
from outbox.demo.actors import REVIEWER

from kit.browsing import OURS, Page
from kit.pipelines import value
from kit.servers import Process, wait_for

CONTENTS = ["I love this #bakery!", "The bus leaves at nine.", "I hate this. It is a shame, and I am angry."] * 4


def review(url: str) -> None:
    """Approves what the page asks."""
    for form in Page(httpx.get(url)).forms:
        for name, option in form.buttons:
            if option == "approve":
                fields = {**form.fields, str(name): option, "reason": "it has a point"}
                assert httpx.post(urljoin(url, form.action), data=fields, headers=OURS).status_code == 303


def test_with_the_page_a_person_reviews_on_it(admin_dsn: str, spawn: Callable[..., Process], tmp_path: Path) -> None:
    file = tmp_path / "posts.jsonl"
    file.write_text("".join(json.dumps({"content": content}) + "\n" for content in CONTENTS))
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA demo_crm AUTHORIZATION outbox_owner")
        admin.execute("SET ROLE outbox_owner")
        admin.execute(files("outbox.demo").joinpath("crm.sql").read_text().split(";", 1)[1])
        demo = spawn("demo", "--ui", "--posts", str(file))
        assert demo.popen.stdout is not None
        url = next(
            found[0] for line in demo.popen.stdout if (found := re.search(rb"http://\S+/approvals", line))
        ).decode()

        def ended() -> bool:
            if value(admin, "SELECT EXISTS (SELECT FROM outbox.approvals WHERE ended_at IS NULL)"):
                review(url)
            return value(
                admin, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'COMPLETED'"
            ) == len(CONTENTS)

        wait_for(ended, what="all are completed, the angry ones after a review")
        rows = admin.execute(
            "SELECT DISTINCT decided_by, reason FROM outbox.approvals WHERE ended = 'decided'"
        ).fetchall()
        assert rows == [(REVIEWER, "it has a point")]
        demo.send(signal.SIGINT)
        assert demo.wait() == 130
