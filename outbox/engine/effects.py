"""Makes calls whose effect must not happen twice, such as a payment: `run.effect`.

The intention is committed before the call, and the result after it, each under the fence in a transaction of its own.
Whatever ends the process between the two, the next attempt finds the intention, and knows that it doesn't know.

    nothing, not done -> started -> done
                            |-> not done    (the function has raised NotDone: the next attempt calls it)
                            '-> unknown     (it stays started: its attempt has ended, or the function has raised)

    unknown -> done, not done               (by look_up, or by the person who is asked)
            -> started                      (on_unknown="repeat")
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

from pydantic import ValidationError

from .. import documents, texts
from ..database import killpoints, statements
from ..database.link import Link
from ..database.steps import Call, Statement, perform, perform_async
from ..definition.effect import Ask, Asked, Done, Effects, NotDone, OnUnknown, UnderWay, effect_key
from ..definition.reasons import describe
from ..errors import EffectUnknown, HandlerError, LeaseLost
from ..texts import printable
from . import blobs
from .checkpoint import MAX_INLINE, Checkpoints, Results, Steps
from .job import Failed, Finished, Job, Outcome, PutBack, Trouble, fail
from .lease import Lease

SQL = statements.load("effects")
log = logging.getLogger("outbox.worker")

CALL, LOOK_UP = "call", "look_up"
"""By what it is known what has become of an effect, if not by a person."""

HELD_UP = Trouble("", first=0.5, next=0.5, longest=10.0, most=500)
"""What becomes of the job if another session holds its workflow, so that nothing can be asked: it runs again."""


class _Known(NamedTuple):
    """What the ledger has of an effect. `ours`: the intention is of this call, which is to be made."""

    ours: bool
    call: str
    state: str
    result: str | None
    error: str | None
    blob: str | None = None


class Ledger(Checkpoints):
    """Checkpoints, and what is known of effects."""

    def __init__(self, link: Link, lease: Lease) -> None:
        super().__init__(link)
        self._lease = lease

    def trusted(self) -> bool:
        """Returns whether the worker's claims still count, by this process's own clock."""
        return self._lease.is_trusted()

    def effect(
        self, job: Job, found: Effects, name: str, function: Callable[..., Any], args: Any, kwargs: Any,
        on_unknown: OnUnknown,
    ) -> Any:  # fmt: skip
        """Makes a call whose effect must not happen twice, or returns its result. Async handlers await it."""
        steps = effect(job, found, name, function, partial(function, *args, **kwargs), on_unknown)
        if job.stage.is_async:
            return found.under_way.among_others(perform_async(steps, self._take_async))
        return perform(steps, self._take)


def effect(
    job: Job, found: Effects, name: str, function: Callable[..., Any], call: Callable[[], Any], on_unknown: OnUnknown,
    *, inline: int = MAX_INLINE,
) -> Steps[Any]:  # fmt: skip
    """Returns the steps that make the call and keep its result, or find out what has become of an earlier call.

    A result of more than `inline` characters is kept as a blob.
    """
    try:
        results = Results(function)
    except HandlerError:
        found.may_begin_again(name)
        raise
    known = yield from _intend(job, name, results.name, repeat=on_unknown == "repeat")
    if not known.ours and known.state == "started":
        known = yield from _look_up(job, found, name, results, known, on_unknown, inline)
    if known.ours:
        known = yield from _make(job, found, name, results, known.call, call, on_unknown, inline)
    result = yield from _kept(job, found, name, results, known)
    del found.unknown[name]
    return result


def _make(
    job: Job, found: Effects, name: str, results: Results, id_: str, call: Callable[[], Any],
    on_unknown: OnUnknown, inline: int,
) -> Steps[_Known]:  # fmt: skip
    """Makes a call that is intended, and writes what has come of it."""
    # It may have stood still since the intention was written.
    if job.lost is not None or (job.checkpoints is not None and not job.checkpoints.trusted()):
        raise _lost(job)
    killpoints.passing("K14")
    try:
        result = yield Call(call)
        if inspect.iscoroutine(result):  # nothing has run it
            result.close()
            raise NotDone("the function is async, and the handler is a plain function")
        killpoints.passing("K15")
        text = results.write(result, name, "effect")
    except NotDone as error:
        yield from _note(job, name, id_, "not done", error=describe(error), known_by=CALL)
        found.may_begin_again(name)
        raise
    except BaseException as error:
        found.unknown[name] = why = describe(error)
        if on_unknown == "ask" or isinstance(on_unknown, Ask):
            found.asked.append(Asked(name, id_, on_unknown if isinstance(on_unknown, Ask) else Ask()))
        if isinstance(error, Exception):  # one that is cancelled leaves its intention, which says the same
            log.warning("%s %s: effect %s is unknown: %s", job.stage.queue, *map(printable, (job.entity_id, name, why)))
            yield from _note(job, name, id_, "started", error=why)
        raise
    known = yield from _done(job, name, id_, text, CALL, inline)
    killpoints.passing("K16")
    return known


def together(runs: Sequence[Any]) -> None:
    """Makes the effects of several runs, which one handler gets, effects beside each other."""
    under_way = UnderWay()
    for run in runs:
        run._effects = Effects(under_way)


def settled(run: Any, outcome: Finished | Failed) -> Outcome:
    """Returns the outcome of an attempt with effects. It is not committed while one of them is unknown."""
    found: Effects = run._effects
    if found.asked:
        names = ", ".join(each.name for each in found.asked)
        reason = f"it is not known whether {names} has happened: a person is asked"
        return PutBack(replace(HELD_UP, reason=texts.clean(reason), asked=tuple(found.asked)))
    if found.unknown and isinstance(outcome, Finished):
        told = "; ".join(f"{name} ({why})" for name, why in found.unknown.items())
        return fail(run._job, HandlerError(f"not committed, because it is not known whether this has happened: {told}"))
    return outcome


def ask(job: Job, trouble: Trouble) -> Statement:
    """Returns the statement that asks people about effects of an attempt, and parks its job until they have answered.

    Its row is whether they are asked; None: another session has locked the workflow.
    """
    questions = [
        {
            "call": each.call,
            "key": effect_key(job.workflow_id, job.entered, each.name),
            "question": each.ask.question or f'Has effect "{each.name}" happened?',
            "about": None if each.ask.about is None else json.loads(documents.dump_any(each.ask.about, "about")),
            "assignee": each.ask.assignee,
            "approvers": None if each.ask.approvers is None else dict(each.ask.approvers),
            "error": each.error,
        }
        for each in trouble.asked
    ]
    return SQL["effects_ask"], {
        "id": job.workflow_id,
        "job": job.id,
        "worker": job.owner,
        "attempt": job.attempt,
        "questions": json.dumps(questions),
    }


def _intend(job: Job, name: str, function: str, *, repeat: bool) -> Steps[_Known]:
    new = str(uuid4())
    params = {"stage": job.stage.name, "function": function, "call": new, "repeat": repeat}
    while True:
        ((held, ours, call, state, made_by, *rest),) = yield SQL["effect_intend"], {**_work(job, name), **params}
        if not held:
            raise _lost(job)
        if ours:
            return _Known(True, new, "started", None, None)
        if call is None:
            continue  # it was written while the statement ran
        if made_by != params["function"]:
            raise HandlerError(
                f"stage {job.stage.queue}: effect({name!r}) was {made_by}, and is {params['function']} now: "
                "give another function another name"
            )
        return _Known(False, call, state, *rest)


def _look_up(
    job: Job, found: Effects, name: str, results: Results, known: _Known, on_unknown: OnUnknown, inline: int
) -> Steps[_Known]:
    """Finds out what has become of a call. Raises EffectUnknown if a person is to be asked."""
    if on_unknown == "ask" or isinstance(on_unknown, Ask):
        _ask(found, Asked(name, known.call, on_unknown if isinstance(on_unknown, Ask) else Ask()), known.error)
    assert callable(on_unknown)  # with "repeat" the call would be ours
    key = effect_key(job.workflow_id, job.entered, name)
    try:
        answer = yield Call(lambda: on_unknown(key))
    except NotDone as error:
        answer = error
    if isinstance(answer, Ask):
        _ask(found, Asked(name, known.call, answer), known.error)
    elif isinstance(answer, Done):
        text = results.write(answer.result, name, "effect")
        known = yield from _done(job, name, known.call, text, LOOK_UP, inline)
    elif isinstance(answer, NotDone):
        known = yield from _intend(job, name, results.name, repeat=True)
    else:
        what = texts.shown(answer)
        raise HandlerError(f"stage {job.stage.queue}: look_up of effect {name!r} returned {what}: "
                           "return Done(result), NotDone() or Ask()")  # fmt: skip
    return known


def _kept(job: Job, found: Effects, name: str, results: Results, known: _Known) -> Steps[Any]:
    """Returns the result of an earlier call. One that a person has given, and that doesn't fit, is asked for again."""
    text = known.result or "null"
    if known.blob is not None and known.result is None:
        text = yield from blobs.load_text(known.blob)
    try:
        return results.read(text)
    except ValidationError as error:
        ((by_person,),) = yield SQL["effect_told"], {"id": job.workflow_id, "call": known.call}
        if not by_person:
            raise HandlerError(
                f"stage {job.stage.queue}: the result of effect {name!r} doesn't fit: {texts.explain(error)}"
            ) from None
        why = f"the result that was given doesn't fit {results.name}: {texts.explain(error)}"
        _ask(found, Asked(name, known.call, Ask(), texts.clean(why)), why)


def _ask(found: Effects, asked: Asked, why: str | None) -> None:
    found.asked.append(asked)
    raise EffectUnknown(asked.name, why or "the process that has called it ended before its result was written")


def _done(job: Job, name: str, call: str, text: str, known_by: str, inline: int) -> Steps[_Known]:
    """Writes that a call is done, with its result, which is a blob if it is large."""
    blob = (yield from blobs.store(job, text.encode())).sha256 if len(text) > inline else None
    kept = yield from _note(job, name, call, "done", result=None if blob else text, blob=blob, known_by=known_by)
    return _Known(False, call, "done", kept or text, None, blob)


def _note(
    job: Job, name: str, call: str, state: str, *, result: str | None = None, blob: str | None = None,
    error: str | None = None, known_by: str | None = None,
) -> Steps[str | None]:  # fmt: skip
    """Writes what has come of a call. Returns its result as later attempts read it."""
    what = {"call": call, "state": state, "result": result, "blob": blob, "error": error, "known_by": known_by}
    ((held, kept),) = yield SQL["effect_note"], {**_work(job, name), **what}
    if not held:
        raise _lost(job)
    return kept  # type: ignore[no-any-return]


def _work(job: Job, name: str) -> dict[str, Any]:
    fence = {"job": job.id, "worker": job.owner, "attempt": job.attempt}
    return {"id": job.workflow_id, "entered": job.entered, "name": name, **fence}


def _lost(job: Job) -> LeaseLost:
    return LeaseLost(f"{job.stage.queue} {job.entity_id}: {job.lost or 'the job was taken away'}")
