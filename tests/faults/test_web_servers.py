"""Workers embedded in web servers, as real processes: under gunicorn and uvicorn, with reload and preload."""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, one_stage, status_of, value
from kit.servers import Process, wait_for

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]

APP = """
import asyncio, os, sys
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from outbox import Pipeline, Worker

p = Pipeline("p", initial="NEW", final={"DONE"})

@p.stage("work", on="NEW", to="DONE")
async def work(run):
    print("begins", run.entity_id, file=sys.stderr, flush=True)
    if run.entity_id.startswith("slow"):
        await asyncio.sleep(1)
    print("ends", run.entity_id, file=sys.stderr, flush=True)

worker = Worker(p, os.environ["OUTBOX_DSN"], grace=20)

@asynccontextmanager
async def lifespan(app):
    async with worker:
        yield

async def live(request):
    return JSONResponse({"reason": worker.health().reason})

app = Starlette(routes=[Route("/livez", live)], lifespan=lifespan)
"""


async def work(run: Any) -> None: ...


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def workers(conn: Conn) -> list[int]:
    """Returns the processes that are registered as workers."""
    return [int(name.rpartition(":")[2]) for (name,) in conn.execute("SELECT name FROM outbox.workers ORDER BY id")]


@pytest.fixture
def app(tmp_path: Path, conn: Conn) -> Path:
    deployed(conn, one_stage(work, data=None))
    (tmp_path / "served.py").write_text(APP)
    return tmp_path


GUNICORN = ["-m", "gunicorn", "-k", "uvicorn.workers.UvicornWorker", "--graceful-timeout", "25", "--workers"]
UVICORN = ["-m", "uvicorn"]


@pytest.mark.parametrize(
    ("program", "many"),
    [([*GUNICORN, "2"], 2), ([*GUNICORN, "4", "--preload"], 4)],
    ids=["gunicorn", "gunicorn --preload"],
)
def test_each_process_of_gunicorn_has_its_worker_and_a_stop_ends_their_handlers(
    conn: Conn, spawn: Spawn, app: Path, program: list[str], many: int
) -> None:
    port = free_port()
    home = {"HOME": str(app)}  # where gunicorn 27 puts a socket
    server = spawn("--chdir", str(app), "--bind", f"127.0.0.1:{port}", "served:app", program=program, env=home)
    wait_for(lambda: len(workers(conn)) == many, what="each process serves")
    wait_for(lambda: answers(port))
    assert len(set(workers(conn))) == many
    pipeline = one_stage(work, data=None)
    pipeline.submit_many(conn, ((f"slow{n}", {}) for n in range(8)))
    wait_for(lambda: server.text().count("begins slow") == 8, what="all have begun")
    server.send(signal.SIGTERM)
    assert server.wait() == 0, server.text()
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'") == 8
    assert value(conn, "SELECT count(*) FROM outbox.state_changes WHERE attempt > 1") == 0
    assert workers(conn) == []
    assert "before a fork" not in server.text()


def test_reload_leaves_no_orphan_and_finishes_what_has_begun(conn: Conn, spawn: Spawn, app: Path) -> None:
    port = free_port()
    server = spawn(
        "--app-dir", str(app), "--reload", "--reload-dir", str(app), "--port", str(port), "served:app", program=UVICORN
    )
    wait_for(lambda: len(workers(conn)) == 1)
    (first,) = workers(conn)
    one_stage(work, data=None).submit(conn, "slow", {})
    wait_for(lambda: "begins slow" in server.text())
    (app / "served.py").write_text(APP + f"\n# changed at {time.time()}\n")
    wait_for(lambda: workers(conn) not in ([], [first]) and first not in workers(conn), what="a new process serves")
    assert status_of(conn, "slow") == "DONE"
    wait_for(lambda: answers(port))
    assert len(workers(conn)) == 1
    server.send(signal.SIGINT)
    server.wait()
    wait_for(lambda: workers(conn) == [], what="the last worker has left")
    sessions = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'outbox%'"
    )
    wait_for(lambda: value(conn, sessions) == 0, what="no session is left")


def test_a_process_that_is_killed_leaves_its_jobs_to_the_others(conn: Conn, spawn: Spawn, app: Path) -> None:
    port = free_port()
    server = spawn("--app-dir", str(app), "--workers", "2", "--port", str(port), "served:app", program=UVICORN)
    wait_for(lambda: len(workers(conn)) == 2)
    one_stage(work, data=None).submit(conn, "slow", {})
    owner = "SELECT w.name FROM outbox.jobs j JOIN outbox.workers w ON w.id = j.owner"
    wait_for(lambda: "begins slow" in server.text())

    os.kill(int(value(conn, owner).rpartition(":")[2]), signal.SIGKILL)
    wait_for(lambda: status_of(conn, "slow") == "DONE")
    assert server.text().count("begins slow") == 2
    wait_for(lambda: len(workers(conn)) == 2, what="uvicorn has started another process")
    server.send(signal.SIGTERM)
    server.wait()
    wait_for(lambda: workers(conn) == [])


def test_a_database_that_is_not_ready_ends_the_start(spawn: Spawn, app: Path, empty_dsn: str) -> None:
    server = spawn(
        "--app-dir", str(app), "--port", str(free_port()), "served:app", program=UVICORN, env={"OUTBOX_DSN": empty_dsn}
    )
    assert server.wait() == 3
    assert "outbox migrate" in server.text()


def test_the_flask_shop_has_a_worker_in_each_process_of_gunicorn(
    conn: Conn, spawn: Spawn, tmp_path: Path, admin_dsn: str
) -> None:
    root = Path(__file__).parents[2]
    env = {"DATABASE_URL": admin_dsn, "PYTHONPATH": str(root), "HOME": str(tmp_path)}
    prepared = spawn(program=["-m", "examples.flask_shop.prepare"], env=env)
    assert prepared.wait() == 0, prepared.text()
    config = str(root / "examples/flask_shop/gunicorn.conf.py")
    where = ["--chdir", str(root), "--bind", f"127.0.0.1:{free_port()}", "--workers", "2"]
    server = spawn("--config", config, *where, "examples.flask_shop.app:app", program=["-m", "gunicorn"], env=env)
    wait_for(lambda: len(workers(conn)) == 2, what="two workers serve")
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('flask_shop', 'o', %s)",
                 ['{"order_id": 1, "cents": 5}'])  # fmt: skip
    wait_for(lambda: status_of(conn, "o") == "SHIPPED")
    server.send(signal.SIGTERM)
    assert server.wait() == 0, server.text()
    assert workers(conn) == []
