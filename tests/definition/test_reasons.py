"""Why a function of the user's has failed: its own line, every reason, no value and no secret."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox import InvalidInput, Reject, Retry, SettingsError
from outbox.commands import application
from outbox.definition.reasons import MAX_TRACEBACK, describe, from_handler, leaves, traceback_of
from outbox.documents import dump_any

CANARY = "canary-5f2a"


def raised_by(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


async def fail(error: BaseException) -> None:
    raise error


def a_group() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail(ValueError("the real reason")))

    asyncio.run(main())


def several() -> None:
    inner = ExceptionGroup("inner", [KeyError("two"), ExceptionGroup("most inner", [OSError("three")])])
    raise BaseExceptionGroup("outer", [ValueError("one"), inner, SystemExit(4)])


def a_cause() -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise RuntimeError("outer") from error


def a_context() -> None:
    try:
        raise KeyError("inner")
    except KeyError:
        raise RuntimeError("outer")  # noqa: B904 - without `from` is the point


def no_context() -> None:
    try:
        raise KeyError("inner")
    except KeyError:
        raise RuntimeError("outer") from None


def notes() -> None:
    error = ValueError("bad")
    error.add_note("of order 5")
    error.add_note("see the wiki")
    raise error


def a_timeout() -> None:
    async def main() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)

    asyncio.run(main())


def of_a_library() -> None:
    json.loads("{")


def of_another_thread() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(of_a_library).result()


def ours() -> None:
    dump_any(object(), "payload")


@pytest.mark.parametrize(
    ("function", "told", "untold"),
    [
        (a_group, ["ValueError: the real reason (test_reasons.py:", " in fail)", "TaskGroup"], []),
        (several, ["ValueError: one", "KeyError: 'two'", "OSError: three", "SystemExit: 4", "outer"], []),
        (a_cause, ["RuntimeError: outer (", "in a_cause), caused by KeyError: 'inner' (test_reasons.py:"], []),
        (a_context, ["RuntimeError: outer (", ", while handling KeyError: 'inner'"], []),
        (no_context, ["RuntimeError: outer ("], ["inner"]),
        (notes, ["ValueError: bad; of order 5; see the wiki (test_reasons.py:"], []),
        (a_timeout, ["TimeoutError (test_reasons.py:", " in main)"], ["timeouts.py", "CancelledError"]),
        (of_a_library, ["JSONDecodeError: Expecting", "(test_reasons.py:", " in of_a_library)"], ["decoder.py"]),
        (of_another_thread, ["(test_reasons.py:", " in of_a_library)"], ["thread.py", "decoder.py"]),
        (ours, ["InvalidInput: payload: can't be written", "(test_reasons.py:", " in ours)"], ["documents.py"]),
    ],
)
def test_an_error_is_told_with_every_reason_and_the_line_of_the_user(
    function: Callable[[], None], told: list[str], untold: list[str]
) -> None:
    error = raised_by(function)
    line = describe(from_handler(error))
    assert [part for part in told if part not in line] == [], line
    assert [part for part in untold if part in line] == [], line
    trace = traceback_of(error)
    for each in leaves(error):
        assert type(each).__name__ in trace
        assert str(each).partition("\n")[0] in trace
    assert "/outbox/documents.py" not in trace, "our own frames are no news for the user"


def test_a_module_that_can_not_be_compiled_has_only_its_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("x = (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SettingsError) as raised:
        application.load("broken_module:x")
    assert str(raised.value).endswith("SyntaxError: '(' was never closed (broken_module.py, line 1)")


def test_an_application_that_is_installed_is_no_library_of_its_own(tmp_path: Any) -> None:
    def made(file: str, text: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(compile(text, str(tmp_path / "lib/site-packages" / file), "exec"), names)
        return names

    library = made("driver/core.py", "def connect():\n    raise OSError('refused')")
    app = made("shop/steps.py", "def work(connect):\n    connect()")
    with pytest.raises(OSError, match="refused") as caught:
        app["work"](library["connect"])
    error = caught.value
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next  # as the worker calls it: without a frame of the test's
    assert "(steps.py:2 in work)" in describe(error)


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)


def test_code_that_a_library_has_generated_or_compiled_is_not_the_users(dsn: str) -> None:
    def commit_session() -> None:
        with Session(sqlalchemy.create_engine("sqlite://")) as session:
            session.add(Row())  # its table is missing
            session.commit()

    def commit_connection() -> None:
        with psycopg.connect(dsn) as conn, conn.transaction():
            conn.commit()

    for work in (commit_session, commit_connection):
        error = raised_by(work)
        assert error.__traceback__ is not None
        error.__traceback__ = error.__traceback__.tb_next  # as the worker calls it: without a frame of the test's
        assert f" in {work.__name__})" in describe(error)


def test_what_comes_from_itself_is_told_once() -> None:
    error, other = ValueError("a"), KeyError("b")
    error.__cause__, other.__cause__ = other, error
    assert describe(error).count("ValueError: a") == 1
    assert "KeyError" in traceback_of(from_handler(error))


class Odd(Exception):
    __traceback__ = property(lambda self: 1 / 0)  # type: ignore[assignment]
    __notes__ = 5

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("error", [Odd(), ExceptionGroup("g", [Odd(), ValueError("\ud800\0")]), Reject(), Retry()])
def test_an_exception_of_any_class_can_be_told(error: BaseException) -> None:
    for told in (describe(from_handler(error)), traceback_of(error)):
        assert told
        told.encode()
        assert "\0" not in told


def test_a_traceback_has_no_value_of_a_variable_no_password_and_no_control_character() -> None:
    def connect(dsn: str) -> None:
        url = dsn
        raise ValueError(f"\x1b[31mcan't read {url}\r\nforged: and host=h password='{CANARY} x' port=1")

    error = raised_by(lambda: connect(f"postgresql://me:{CANARY}/x@host/db"))
    told = traceback_of(error)
    assert CANARY not in told
    assert CANARY not in describe(error)
    assert "postgresql://me:***@host/db" in told
    assert all(line.isprintable() for line in told.split("\n"))


def test_a_long_traceback_keeps_its_beginning_and_its_end() -> None:
    error = ExceptionGroup("many", [ValueError(f"number {n} {'x' * 5_000}") for n in range(99)])
    told = traceback_of(error)
    assert len(told) < MAX_TRACEBACK + 100
    assert "number 0 " in told
    assert "number 98 " in told
    assert "characters left out" in told


def test_ours_without_the_user_keeps_its_frames() -> None:
    with pytest.raises(InvalidInput) as caught:
        dump_any(object(), "x")
    error = caught.value
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    assert "documents.py" in traceback_of(from_handler(error)), "else an error of ours would have no place at all"
    assert "documents.py" not in describe(error), "but it says itself what is wrong"
