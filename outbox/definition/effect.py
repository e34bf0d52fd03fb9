"""Defines what a handler says of an effect: a call that must not happen twice, such as charging a card.

The intention is written before the call, and its result after it. An effect of which only the intention is known is
unknown: `on_unknown` says what happens then. See engine/effects.py.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from .. import documents
from ..checks import MAX_NAME, MAX_QUESTION
from ..errors import EffectUnknown, HandlerError, InvalidInput
from ..texts import check_optional, shown
from .waits.question import check_approvers

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """Returned by a `look_up`: the effect has happened, and `result` is what its function would have returned."""

    result: Result


class NotDone(Exception):
    """The effect has certainly not happened. Raised by its function, or returned by a `look_up`.

    If the function raises it, the handler gets it, and the next attempt makes the call. If a `look_up` returns it, the
    call is made at once.
    """


@dataclass(frozen=True, slots=True)
class Ask:
    """Has a person asked whether an effect has happened: `on_unknown=Ask("Was invoice 17 sent?")`, or of a `look_up`.

    `about` is shown with the question, as JSON. `assignee` is who is asked, and `approvers` are the groups whose votes
    it needs, as in a `Question`. Raises InvalidInput if a value can't be stored.
    """

    question: str | None = None
    about: Any = field(default=None, kw_only=True, repr=False)
    assignee: str | None = field(default=None, kw_only=True)
    approvers: Mapping[str, int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_optional(self.question, "question", MAX_QUESTION)
        check_optional(self.assignee, "assignee", MAX_NAME)
        if self.about is not None:
            documents.dump_any(self.about, "about")
        if self.approvers is not None:
            check_approvers(self.approvers)


Known = Done[Any] | NotDone | Ask
LookUp = Callable[[str], Known | Awaitable[Known]]
OnUnknown = Literal["ask", "repeat"] | Ask | LookUp


@dataclass(frozen=True, slots=True)
class Asked:
    """A question to a person about a call of an effect. `error`: why the answer before can't be used."""

    name: str
    call: str
    ask: Ask
    error: str | None = None


Under = asyncio.Future[None]
"""An effect under way. It is done when the effect has ended."""

_within: ContextVar[Under | None] = ContextVar("outbox_effect", default=None)
"""The effect whose function runs here."""


class UnderWay:
    """The effects under way in one call of a handler.

    What raises beside one waits for its end. A TaskGroup, or an agent's framework, would cut it off, half done.
    """

    __slots__ = ("_effects",)

    def __init__(self) -> None:
        self._effects: dict[Under, Under | None] = {}  # each with the effect whose function makes it

    async def among_others(self, effect: Coroutine[Any, Any, Any]) -> Any:
        """Awaits an effect. If it raises, those beside it end first."""
        ended: Under = asyncio.get_running_loop().create_future()
        self._effects[ended] = _within.get()
        token = _within.set(ended)
        try:
            try:
                return await effect
            finally:
                _within.reset(token)
                del self._effects[ended]
                ended.set_result(None)
        except Exception:
            await self.others_end()
            raise

    async def others_end(self) -> None:
        """Waits for the effects under way beside what runs here. One within which it runs waits for it."""
        here = _within.get()
        while beside := [each for each, within in self._effects.items() if within is here]:
            await asyncio.wait(beside)


class Effects:
    """What one call of a handler knows of its effects.

    `asked` are the questions to people. `unknown` says why it is not known what has become of some, by their names.
    """

    __slots__ = ("_names", "asked", "under_way", "unknown")

    def __init__(self, under_way: UnderWay | None = None) -> None:
        self.under_way = under_way or UnderWay()
        self._names: set[str] = set()
        self.asked: list[Asked] = []
        self.unknown: dict[str, str] = {}

    def begin(self, name: str, what: str) -> None:
        """Notes that an effect begins. Raises HandlerError if one of its name has, EffectUnknown if people are asked.

        `what` names the handler: "stage shop.pay".
        """
        if self.asked:
            raise EffectUnknown(self.asked[0].name, "this attempt has ended")
        if name in self._names:
            raise HandlerError(f"{what} has two effects {name!r} in one attempt: give each a name of its own")
        self._names.add(name)
        # Until it is known. Nothing is committed if it is cancelled, or if the handler doesn't await it.
        self.unknown[name] = "it has not ended"

    def may_begin_again(self, name: str) -> None:
        """Notes that an effect has not happened."""
        self._names.discard(name)
        self.unknown.pop(name, None)


def effect_key(workflow_id: str, entered: int, name: str) -> str:
    """Returns the idempotency key of an effect. The stage is no part of it: it may have another name tomorrow."""
    return f"{workflow_id}:{entered}:{name}"


def checked(function: object, on_unknown: object, *, is_async: bool) -> None:
    """Raises InvalidInput unless a handler of this colour can call both, or `on_unknown` says what else to do."""
    if not callable(function):
        raise InvalidInput("function", f"must be a function, not {shown(function)}")
    # A class is callable, too: NotDone in place of a look_up would have each call repeated.
    looks_up = callable(on_unknown) and not isinstance(on_unknown, type)
    if on_unknown not in ("ask", "repeat") and not isinstance(on_unknown, Ask) and not looks_up:
        raise InvalidInput("on_unknown", f'must be "ask", Ask(…), "repeat" or a function, not {shown(on_unknown)}')
    for what, each in (("function", function), ("on_unknown", on_unknown)):
        if not is_async and inspect.iscoroutinefunction(each):
            raise InvalidInput(what, "is async, and the handler is a plain function")


def with_key(function: Callable[..., Any], args: Any, kwargs: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns the arguments of a call by name, with the idempotency key if the function has a parameter for it.

    Raises TypeError if it can't be called with these.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # it has none
        return kwargs
    if "idempotency_key" in signature.parameters:
        kwargs = {"idempotency_key": key, **kwargs}
    signature.bind(*args, **kwargs)
    return kwargs
