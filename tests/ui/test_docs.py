"""The applications of docs/ui.md work as printed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from kit.browsing import Visitor

Conn = psycopg.Connection[Any]
DOCS = Path(__file__).parents[2] / "docs" / "ui.md"
SETTINGS = """
SECRET_KEY = "x"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
"""


@pytest.fixture
def load(tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a file that the page prints."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DATABASE_URL", dsn)
    for block in DOCS.read_text(encoding="utf-8").split("```python\n")[1:]:
        name, _, text = block.partition("```")[0].partition("\n")
        (tmp_path / name.removeprefix("# ")).write_text(text)
    yield importlib.import_module
    for name in {"admin", "asgi", "shop_settings"} & (set(sys.modules) - before):
        del sys.modules[name]


def test_fastapi(shop: Conn, load: Callable[[str], ModuleType]) -> None:
    visit = Visitor(load("admin").app, host="http://shop.example")
    assert visit.get("/outbox/").status == 403
    page = visit.get("/outbox/", headers={"cookie": "session=sarah-key"})
    assert page.status == 200
    assert all(link.startswith(("/outbox/", "#")) for link in page.links)


PROGRAM = """
import asyncio, sys
import httpx
import asgi
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core import signing

call_command("migrate", verbosity=0)
staff, guest = (User.objects.create(username=name, is_staff=name == "ann") for name in ("ann", "eve"))


def cookie(user):
    return "sessionid=" + signing.dumps({"_auth_user_id": str(user.pk)}, compress=True,
        salt="django.contrib.sessions.backends.signed_cookies")


async def status(path, user=None):
    transport = httpx.ASGITransport(asgi.application)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
        answer = await client.get(path, headers={"cookie": cookie(user)} if user else {})
    return answer.status_code, "ann, may decide, look" in " ".join(answer.text.split()).replace("</bdi>", "")


print([asyncio.run(status("/outbox/", user)) for user in (None, guest, staff)])
"""


def test_django(shop: Conn, dsn: str, tmp_path: Path, load: Callable[[str], ModuleType]) -> None:
    (tmp_path / "shop_settings.py").write_text(SETTINGS.replace(":memory:", str(tmp_path / "shop.db")))
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # Django takes settings for a whole process
    assert done.stdout.strip() == "[(403, False), (403, False), (200, True)]", done.stderr[-3000:]
