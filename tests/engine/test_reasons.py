"""The reason of a failed attempt: in the log when it happens, with the dead job afterwards."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import Post, deployed, drain, one_stage, value
from kit.servers import Process
from outbox import Backoff, Pipeline, Reject, Retry, Run
from outbox.engine.apart import ALL
from outbox.engine.retention import SQL

Conn = psycopg.Connection[Any]
CANARY = "canary-5f2a"
TWICE = Backoff(first=0, attempts=2)


def helper() -> None:
    raise KeyError("the real reason")


async def in_a_group(run: Run[Post]) -> None:
    async def step() -> None:
        helper()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(step())


async def with_a_cause(run: Run[Post]) -> None:
    try:
        helper()
    except KeyError as error:
        error.add_note("of order 5")
        raise RuntimeError("outer") from error


def in_a_thread(run: Run[Post]) -> None:
    secret = CANARY
    helper()
    print(secret)


async def in_a_connection(run: Run[Post]) -> None:
    await run.connection.execute("SELECT 1")
    helper()


def failing(conn: Conn, handler: Callable[..., Any], **options: Any) -> Pipeline[Post]:
    posts = deployed(conn, one_stage(handler, **{"retry": TWICE, **options}))
    posts.submit(conn, "a\x1b[31m", Post())
    return posts


@pytest.mark.parametrize(
    ("handler", "options"),
    [
        (in_a_group, {}),
        (with_a_cause, {}),
        (in_a_thread, {}),
        (in_a_connection, {"transaction": True}),
    ],
)
def test_each_failed_attempt_is_told_with_its_traceback_from_the_handler_down(
    conn: Conn,
    dsn: str,
    caplog: pytest.LogCaptureFixture,
    outbox: Outbox,
    handler: Callable[..., Any],
    options: dict[str, Any],
) -> None:
    caplog.set_level(logging.INFO)
    drain(failing(conn, handler, **options), dsn)
    first, last = [record for record in caplog.records if record.name == "outbox.stage.p.work"]
    assert (first.levelname, last.levelname) == ("WARNING", "ERROR")
    assert "attempt 1 of 2 failed, the next one comes in 0.0 s: " in first.getMessage()
    assert "is dead after 2 attempts: " in last.getMessage()
    for record, attempt in ((first, 1), (last, 2)):
        assert "\x1b" not in record.getMessage()
        assert "KeyError: 'the real reason'" in record.getMessage()
        assert vars(record)["attempt"] == attempt
        assert vars(record)["entity"] == "a\x1b[31m"
        assert record.exc_info
        assert "in helper\n" in logging.Formatter().format(record)
        trace = record.exc_info[2]
        assert trace is not None
        assert trace.tb_frame.f_code.co_name == handler.__name__, "the first frame is the handler's"
    assert vars(first)["retry_in"] <= 0.01
    assert vars(last)["retry_in"] is None
    kept = str(value(conn, "SELECT traceback FROM outbox.dead_jobs"))
    assert f"in {handler.__name__}\n" in kept
    assert "in helper\n" in kept
    assert "KeyError: 'the real reason'" in kept
    assert "engine/handle.py" not in kept
    assert CANARY not in kept
    shown = outbox("show", "a\x1b[31m", "--traceback").out
    assert "in helper" in shown
    assert "in helper\n" not in outbox("show", "a\x1b[31m").out
    assert outbox("show", "a\x1b[31m", "--json").json["dead_job"]["traceback"] == kept


@pytest.mark.parametrize(
    ("raised", "attempts", "error"),
    [
        ([Reject("no such customer")], 1, "no such customer"),
        ([ValueError("broken"), Reject("no such customer")], 1, "no such customer; ValueError: broken"),
        ([Retry(after=0, message="not yet")], 2, "not yet"),
        ([Retry(after=0, message="not yet"), KeyError("x")], 2, "not yet; Retry: not yet; KeyError: 'x'"),
        ([ExceptionGroup("inner", [Reject("deep")]), Retry()], 1, "deep; retry"),
    ],
)
def test_what_one_task_of_a_group_says_counts_as_if_the_handler_said_it(
    conn: Conn, dsn: str, raised: list[Exception], attempts: int, error: str
) -> None:
    async def work(run: Run[Post]) -> None:
        raise ExceptionGroup("unhandled errors in a TaskGroup", raised)

    drain(failing(conn, work), dsn)
    kept = conn.execute("SELECT attempts, error FROM outbox.dead_jobs").fetchone()
    assert kept is not None
    assert kept[0] == attempts
    assert error.partition(";")[0] in kept[1]


def test_the_longest_wait_of_a_group_counts(conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work(run: Run[Post]) -> None:
        raise ExceptionGroup("g", [Retry(after=30), Retry(after=900), Retry(), ValueError("x")])

    drain(failing(conn, work), dsn)
    (record,) = [record for record in caplog.records if record.name == "outbox.stage.p.work"]
    assert vars(record)["retry_in"] == 900


def test_data_that_does_not_fit_is_an_error_with_an_exception_and_without_the_values(
    conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(run: Run[Post]) -> None: ...

    posts = deployed(conn, one_stage(work))
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('p', 'x', %s)",
        (json.dumps({"enrichment": CANARY}),),
    )
    drain(posts, dsn)
    (record,) = [record for record in caplog.records if record.name == "outbox.stage.p.work"]
    assert record.levelname == "ERROR"
    assert record.exc_info
    assert CANARY not in caplog.text


def test_formatters_of_others_are_given_no_password_and_no_control_character(
    conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    def work(run: Run[Post]) -> None:
        raise ValueError(f"\x1b[31m postgresql://u:{CANARY}@h/db \r\nforged\0\ud800")

    drain(failing(conn, work), dsn)
    record = next(record for record in caplog.records if record.name == "outbox.stage.p.work")
    told = logging.Formatter().format(record)
    assert CANARY not in told
    assert all(line.isprintable() for line in told.split("\n"))


def test_retention_drops_the_traceback_with_the_error(conn: Conn, dsn: str) -> None:
    drain(failing(conn, in_a_group), dsn)
    conn.execute("UPDATE outbox.dead_jobs SET died_at = died_at - interval '2 days'")
    conn.execute(SQL["retention_dead_jobs"], {"days": 1, "limit": 10, **ALL})
    assert conn.execute("SELECT error, traceback FROM outbox.dead_jobs").fetchall() == [("dropped by retention", None)]


APP = f"""
import logging.config
logging.config.dictConfig({{
    "version": 1,
    "formatters": {{"plain": {{"format": "PLAIN %(levelname)s %(name)s %(message)s"}}}},
    "handlers": {{"err": {{"class": "logging.StreamHandler", "formatter": "plain"}}}},
    "root": {{"level": "INFO", "handlers": ["err"]}},
}})
from outbox import Backoff, Pipeline
p = Pipeline("p", initial="A", final={{"Z"}})

def inner(secret):
    raise ValueError("the real reason")

@p.stage("work", on="A", to="Z", retry=Backoff(first=0, attempts=2))
async def work(run):
    try:
        inner({CANARY!r})
    except ValueError:
        run.log.exception("seen by the handler")
        raise
"""


def test_a_worker_whose_application_configures_logging_tells_all_the_same(
    conn: Conn, spawn: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noisy.py").write_text(APP)
    env = {"PYTHONPATH": str(tmp_path)}
    monkeypatch.syspath_prepend(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("logging.config.dictConfig", lambda config: None)
        deployed(conn, importlib.import_module("noisy").p)
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('p', 'x')")
    worker = spawn("worker", "--app", "noisy:p", "--drain", env=env)
    assert worker.wait() == 0
    text = worker.text()
    assert "PLAIN WARNING outbox.stage.p.work p.work x: attempt 1 of 2 failed" in text
    assert "PLAIN ERROR outbox.stage.p.work p.work x is dead after 2 attempts" in text
    assert "PLAIN INFO outbox.worker stopped" in text
    assert text.count("seen by the handler") == 2
    assert text.count("in inner\n") == 4, "the handler's own words and ours have their tracebacks"
