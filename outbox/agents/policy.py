"""Reads from a tool's metadata how its calls are made and kept: `metadata={"outbox": {"effect": True}}`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from ..checks import check_seconds
from ..definition.effect import NotDone, OnUnknown
from ..definition.outcome import Backoff, Reject, Retry
from ..definition.stage import MAX_TIMEOUT, MIN_TIMEOUT
from ..errors import DefinitionError, OutboxError
from ..texts import shown
from .errors import StillWaits

KEY = "outbox"
"""The key of a tool's metadata under which its policy is."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ToolPolicy:
    """How the calls of a tool are made and kept.

    `effect`: a call must not happen twice, and is kept by `run.effect`; `on_unknown` is a parameter of that. `timeout`
    bounds one try of a call, in seconds. With `retry`, a call that fails is tried again within the attempt, one of an
    effect only if it raises NotDone. Without it, the failure fails the attempt.
    """

    effect: bool = False
    on_unknown: OnUnknown = "ask"
    retry: Backoff | None = None
    timeout: float | None = None

    async def call(self, function: Callable[[], Awaitable[Result]]) -> Result:
        """Awaits the function until it returns. Raises what its last try has raised."""
        tried = 1
        while True:
            try:
                async with asyncio.timeout(self.timeout):
                    return await function()
            except (OutboxError, Reject, Retry, StillWaits):
                raise  # they say what becomes of the attempt
            except Exception as error:
                may_repeat = not self.effect or isinstance(error, NotDone)
                delay = self.retry.delay(tried) if self.retry is not None and may_repeat else None
                if delay is None:
                    raise
                tried += 1
            await asyncio.sleep(delay)


NO_POLICY = ToolPolicy()


def read(metadata: Mapping[str, Any] | None, tool: str) -> ToolPolicy | Literal[False]:
    """Returns the policy of a tool; False if its calls are not kept. Raises DefinitionError for any other value."""
    given = (metadata or {}).get(KEY)
    if given is None:
        return NO_POLICY
    if given is False:
        return False
    what = f"tool {tool}: metadata {KEY!r}"
    known = [field.name for field in fields(ToolPolicy)]
    if not isinstance(given, Mapping) or (unknown := set(given) - set(known)):
        wrong = shown(given) if not isinstance(given, Mapping) else ", ".join(sorted(map(shown, unknown)))
        raise DefinitionError(f"{what}: {wrong} is not one of {', '.join(known)}, as a dict, or False")
    retry, timeout = given.get("retry"), given.get("timeout")
    if isinstance(retry, Mapping):
        retry = Backoff(**retry)  # as the discovery of a toolset keeps it
    if retry is not None and not isinstance(retry, Backoff):
        raise DefinitionError(f"{what}: retry={shown(retry)} is not a Backoff")
    if timeout is not None:
        timeout = check_seconds(timeout, f"{what}: timeout", MIN_TIMEOUT, MAX_TIMEOUT)
    effect, on_unknown = given.get("effect", False), given.get("on_unknown", "ask")
    if not isinstance(effect, bool) or ("on_unknown" in given and not effect):
        raise DefinitionError(f"{what}: effect={shown(effect)} must be True or False, and on_unknown is for an effect")
    return ToolPolicy(effect, on_unknown, retry, timeout)
