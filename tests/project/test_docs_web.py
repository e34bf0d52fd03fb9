"""The applications of docs/fastapi.md and the pipeline of docs/hooks.md work as printed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

import outbox
from kit.pipelines import drain, status_of
from kit.servers import wait_for

ROOT = Path(__file__).parents[2]
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, conn: psycopg.Connection[Any], dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a file that a page prints."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    printed: dict[str, str] = {}
    for page in ("fastapi.md", "hooks.md"):
        for block in (ROOT / "docs" / page).read_text(encoding="utf-8").split("```python\n")[1:]:
            name, _, text = block.partition("```")[0].partition("\n")
            printed[name.removeprefix("# ")] = text
    for name, text in printed.items():
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)  # of another page or example

    def load(name: str) -> ModuleType:
        monkeypatch.setenv(
            "DATABASE_URL", dsn if name != "app" else dsn.replace("postgresql://", "postgresql+asyncpg://")
        )
        if name != "orders":
            outbox.deploy(conn, importlib.import_module("posts").posts)
        return importlib.import_module(name)

    yield load
    for name in {each.removesuffix(".py") for each in printed} & (set(sys.modules) - before):
        del sys.modules[name]


def check(conn: psycopg.Connection[Any], client: Any) -> None:
    assert client.get("/readyz").status_code == 200
    assert client.post("/posts/17", json={"content": "hello"}).status_code == 201
    wait_for(lambda: status_of(conn, "post_17") == "PUBLISHED")


def test_fastapi(conn: psycopg.Connection[Any], load: Load) -> None:
    from fastapi.testclient import TestClient

    with TestClient(load("app").app) as client:
        check(conn, client)
        assert client.get("/livez").json()["listening"] is True


def test_litestar(conn: psycopg.Connection[Any], load: Load) -> None:
    from litestar.testing import TestClient

    with TestClient(load("litestar_app").app) as client:
        check(conn, client)


def test_flask_and_gunicorns_hooks(conn: psycopg.Connection[Any], load: Load, tmp_path: Path) -> None:
    app = load("flask_app")
    hooks: dict[str, Any] = {}
    exec((tmp_path / "gunicorn.conf.py").read_text(), hooks)
    assert app.app.test_client().get("/readyz").status_code == 503
    hooks["post_worker_init"](None)
    try:
        check(conn, app.app.test_client())
    finally:
        hooks["worker_exit"](None, None)
    assert app.worker.health().reason == "the worker is not running"


def test_hooks(conn: psycopg.Connection[Any], dsn: str, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    orders = load("orders").orders
    outbox.deploy(conn, orders)
    orders.submit(conn, "order_1", {})
    drain(orders, dsn)
    assert status_of(conn, "order_1") == "DONE"
    assert capsys.readouterr().out.splitlines() == ["begins orders charge order_1", "ends"]
