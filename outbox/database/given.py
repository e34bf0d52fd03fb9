"""Takes a DSN as applications have it: a text of any common form, a URL object of SQLAlchemy, or a function.

A function is called for each connection, so that it can return a password that changes. All other modules of this
package work on what `given` returns.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import psycopg
from typing_extensions import TypeIs

from ..errors import SettingsError
from . import urls
from .dsn import engine_conninfo

T = TypeVar("T")

WITHIN = 30.0
"""Seconds that a function has to return a DSN: a service that keeps secrets may be slow, and one that hangs must not
hang a worker."""


class SQLAlchemyURL(Protocol):
    """A `sqlalchemy.URL`."""

    def render_as_string(self, hide_password: bool = True) -> str: ...


class PydanticURL(Protocol):
    """A `pydantic.PostgresDsn`."""

    def unicode_string(self) -> str: ...


class SecretText(Protocol):
    """A `pydantic.SecretStr`."""

    def get_secret_value(self) -> str: ...


DsnValue: TypeAlias = str | SQLAlchemyURL | PydanticURL | SecretText
AnyDsn: TypeAlias = DsnValue | Callable[[], DsnValue] | Callable[[], Awaitable[DsnValue]]
"""What is accepted wherever a DSN is passed."""


@dataclass(frozen=True, slots=True)
class Source:
    """A function that returns the DSN. Two sources with the same function are equal."""

    function: Callable[[], Any]

    def __repr__(self) -> str:
        return f"Source({self.name})"

    @property
    def name(self) -> str:
        """The function's name, never its arguments, which may be secrets."""
        name = getattr(self.function, "__qualname__", None) or type(self.function).__qualname__
        return f"{getattr(self.function, '__module__', None) or '?'}.{name}"


Dsn: TypeAlias = str | Source
"""A DSN inside Outbox: a text that libpq reads, or the function that returns one."""


def given(dsn: Any, what: str = "dsn") -> Dsn:
    """Returns a DSN that was passed as `what`. Raises SettingsError if it isn't one, without a secret."""
    if isinstance(dsn, Source):
        return dsn
    if isinstance(dsn, str):
        return urls.libpq(dsn)
    if hasattr(type(dsn), "render_as_string"):
        return urls.libpq(dsn.render_as_string(hide_password=False), sqlalchemy=True)
    if hasattr(type(dsn), "unicode_string"):
        return urls.libpq(dsn.unicode_string())
    if hasattr(type(dsn), "get_secret_value"):
        return given(dsn.get_secret_value(), what)
    if callable(dsn) and not isinstance(dsn, type):
        return Source(dsn)
    raise SettingsError(
        f"{what} must be a DSN, a sqlalchemy.URL or a function that returns one of them, not {type(dsn).__name__}"
    )


def is_dsn(value: object) -> TypeIs[AnyDsn]:
    """Tells a DSN of any form from a connection."""
    if isinstance(value, str | Source):
        return True
    forms = ("render_as_string", "unicode_string", "get_secret_value")
    if any(hasattr(type(value), name) for name in forms):
        return True
    return callable(value) and not isinstance(value, type) and not hasattr(value, "execute")


def both(dsn: Any, listen_dsn: Any) -> tuple[Dsn, Dsn, bool]:
    """Returns a DSN, the direct one beside it, and whether the first leads through a pooler."""
    first = given(dsn)
    direct = given(listen_dsn, "listen_dsn") if listen_dsn not in (None, "") else first
    return first, direct, direct != first


def require_readable(dsn: Dsn, role: str) -> None:
    """Raises SettingsError for a text that can't be read. What a function returns is read at each connection."""
    if isinstance(dsn, str):
        engine_conninfo(dsn, role)


def current(dsn: Dsn) -> str:
    """Returns the DSN to connect by now. Calls a function in this thread; an async one in an event loop of its own.

    Raises OperationalError if the function raises, because it may return a DSN later.
    """
    if isinstance(dsn, str):
        return dsn
    with _Told(dsn):
        found = dsn.function()
        if inspect.isawaitable(found):
            found = _run(_awaited(found))
    return _text(dsn, found)


async def current_async(dsn: Dsn) -> str:
    """Does what `current` does, in an event loop, which a plain function doesn't block: it runs in a thread."""
    if isinstance(dsn, str):
        return dsn
    with _Told(dsn):
        async with _limit():
            found = dsn.function() if _is_async(dsn.function) else await _in_thread(dsn.function)
            if inspect.isawaitable(found):
                found = await found
    return _text(dsn, found)


class _TooSlow(Exception):
    pass


@asynccontextmanager
async def _limit() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(WITHIN) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise _TooSlow from None
        raise


class _Told:
    """Is a block in which an error of a function is told by its type and place.

    Its text is left out, because it may quote the DSN.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if not isinstance(error, Exception):
            return
        why = f"raised {type(error).__name__}{_place(error)}"
        if isinstance(error, _TooSlow):
            why = f"did not return within {WITHIN:g} s"
        elif isinstance(error, OSError) and error.errno is not None:
            why = f"{why}: {os.strerror(error.errno)}"
        raise psycopg.OperationalError(f"the function {self._source.name}, which returns the DSN, {why}") from None


def _place(error: BaseException) -> str:
    """Returns the innermost line of the function's own module."""
    found, frame = "", error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        if frame.tb_frame.f_globals.get("__name__") != __name__ and "site-packages" not in code.co_filename:
            found = f" ({os.path.basename(code.co_filename)}:{frame.tb_lineno})"
        frame = frame.tb_next
    return found


def _text(source: Source, found: Any) -> str:
    dsn = None if callable(found) else given(found, f"what {source.name} returns")
    if not isinstance(dsn, str):
        raise SettingsError(f"what {source.name} returns must be a DSN or a sqlalchemy.URL, not a function")
    return dsn


def _is_async(function: Callable[[], Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


async def _awaited(found: Awaitable[T]) -> T:
    async with _limit():
        return await found


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, also in a thread that has a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="outbox dsn", daemon=True)
    thread.start()
    thread.join()
    for error in errors:
        raise error
    return results[0]


async def _in_thread(function: Callable[[], T]) -> T:
    """Calls a function in a thread of its own: asyncio's threads would keep the process from ending if it hangs."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def call() -> None:
        result: T | None = None
        failed: BaseException | None = None
        try:
            result = function()
        except StopIteration:
            failed = RuntimeError("it raised StopIteration")  # which a future can't hold
        except BaseException as error:
            failed = error
        with suppress(RuntimeError):  # the loop is closed, and nothing awaits the answer
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=call, name="outbox dsn", daemon=True).start()
    return await answer
