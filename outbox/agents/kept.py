"""Keeps the results of an agent's calls: by `run.once`, or by `run.effect` if a call must not happen twice."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from .. import documents, texts
from ..definition.effect import Ask, OnUnknown
from ..definition.run import Run
from ..errors import AgentChanged, InvalidInput
from .attempt import Attempt
from .errors import ResultRefused, StillWaits
from .policy import NO_POLICY, ToolPolicy

_ANY: TypeAdapter[Any] = TypeAdapter(Any)

_LONGEST_ID = 64
"""The longest id of a tool call, in characters, that is a part of a key as it is. Models make shorter ones."""


@dataclass(frozen=True, slots=True)
class Described:
    """A call of an agent: its key, what it must be in each attempt (JSON), and a title for people."""

    agent: str
    key: str
    identity: dict[str, Any]
    title: str


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a call. `made` says whether this attempt has made it."""

    result: Any
    made: bool


async def keep(
    attempt: Attempt, what: Described, make: Callable[[], Awaitable[Any]], *, policy: ToolPolicy = NO_POLICY,
    before: Callable[[], None] = lambda: None, failed: Callable[[Exception], Awaitable[Any]] | None = None,
    about: Any = None, told: Callable[[Any], Any] = lambda result: result,
) -> Kept:  # fmt: skip
    """Makes a call and keeps the result, which is JSON, or returns what an attempt has kept.

    If the call is made, `before` is called first, and `failed` returns what the error of its last try comes to. A
    person who is asked whether an effect has happened sees `about`, its arguments; `told` makes the result of the call
    from what the person says. Raises AgentChanged if what was kept is the result of something else, and ResultRefused
    if the result can't be kept.
    """
    run = attempt.run
    idempotency_key = run.effect_key(what.key) if policy.effect else f"{run.idempotency_key}:{what.key}"

    async def once() -> Any:
        with attempt.within(what.key, idempotency_key):
            return await make()

    async def tried() -> Any:
        before()
        try:
            return await policy.call(once)
        except Exception as error:
            if failed is None:
                raise
            return await failed(error)

    call = Call(tried, what, told)
    try:
        kept = await call.kept(run, _asking(what, policy, about) if policy.effect else None)
        _require_same(kept["of"], what)
    except StillWaits:
        raise
    except Exception:
        await run._others_end()  # the framework cuts off the other calls of the response
        raise
    return Kept(kept["result"], call.returned)


def dumped(dump: Callable[[Any], Any], result: Any, what: Described) -> Any:
    """Returns a result as JSON. Raises ResultRefused if it can't be written as such."""
    try:
        return dump(result)
    except Exception as error:  # whatever a user's serializer raises
        raise ResultRefused(what.title, texts.printable(error)) from error


def tool_result(dump: Callable[[Any], Any], result: Any, what: Described) -> Any:
    """Returns the result of a tool as JSON. Raises ResultRefused also if pydantic would write null for a number."""
    written = dumped(dump, result, what)
    if documents.has_null(written) and documents.has_nonfinite(_ANY.dump_python(result)):
        raise ResultRefused(what.title, "NaN and Infinity are not JSON")
    return written


class Call:
    """A call as `run.once` makes it. Keys belong to the name of this class, whatever is called."""

    def __init__(self, make: Callable[[], Awaitable[Any]], what: Described, told: Callable[[Any], Any]) -> None:
        self._make = make
        self._what = what
        self._told = told
        self.returned = False

    async def kept(self, run: Run[Any], on_unknown: OnUnknown | None) -> dict[str, Any]:
        """Makes the call and keeps its result, or returns what was kept. With `on_unknown`, it is an effect."""
        try:
            kept: Any = await (
                run.once(self._what.key, self)
                if on_unknown is None
                else run.effect(self._what.key, self, on_unknown=on_unknown)
            )
        except InvalidInput as error:
            if not self.returned:
                raise  # it is the tool's own
            raise ResultRefused(self._what.title, error.problem) from error
        if isinstance(kept, dict) and kept.keys() == {"of", "result"}:
            return kept
        return {"of": self._what.identity, "result": self._told(kept)}  # by a person, or a look-up

    async def __call__(self) -> dict[str, Any]:
        result = await self._make()
        self.returned = True
        return {"of": self._what.identity, "result": result}


def _asking(what: Described, policy: ToolPolicy, about: Any) -> OnUnknown:
    """Returns how an effect of a tool becomes known. A person is told which call it was."""
    if policy.on_unknown != "ask":
        return policy.on_unknown
    question = texts.clean(f"{what.agent}: has this call happened? {what.title.removeprefix('tool ')}")
    try:
        return Ask(question, about=from_json(to_json(about, fallback=str)))
    except InvalidInput:  # Postgres can't hold them, but the call needs no place there
        return Ask(question)


def _require_same(kept: dict[str, Any], what: Described) -> None:
    if kept != what.identity:
        raise AgentChanged(
            f"agent {what.agent}: an earlier attempt has kept {what.key!r}: {_difference(kept, what.identity)}. "
            "Bring back the code that the job began with, or move the workflow to its status again"
        )


def _difference(kept: dict[str, Any], now: dict[str, Any]) -> str:
    """Returns what differs between two identities, in words."""
    for name, value in now.items():
        if (before := kept.get(name)) != value:
            if name == "said":
                return "what is said before it is not the same: another prompt, or other calls"
            return f"its {name} was {_listed(before)}, and is {_listed(value)} now"
    return "it was another kind of operation"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def short(id_: str) -> str:
    """Returns the id of a tool call as a part of a key."""
    return id_ if len(id_) <= _LONGEST_ID else hashlib.sha256(id_.encode()).hexdigest()[:_LONGEST_ID]
